// The dialog with the attention map of an image.

import { $, showError, showNotice } from "./dom.js";
import { refresh, state } from "./state.js";

export async function showAttentionMap(image: Blob): Promise<void> {
  const { mgm, busy } = state;
  if (!mgm?.info.vision || busy) {
    showNotice(busy ? "Wait for the answer first." : "Load a model with vision to show its attention map.");
    return;
  }
  state.busy = new AbortController();
  refresh();
  try {
    const map = await mgm.attentionMap(image, { signal: state.busy.signal });
    const { drawAttentionMap } = await import("./attention-map.js");
    await drawAttentionMap($<HTMLCanvasElement>("attention-canvas"), image, map);
    $<HTMLDialogElement>("attention").showModal();
  } catch (error) {
    showError(error);
  } finally {
    state.busy = undefined;
    refresh();
  }
}
