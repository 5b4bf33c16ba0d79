// The page: one conversation with one chat model, one image model, or both.

import { Mgm } from "mgm-webgpu";
import { listenToAttachments } from "./attachments.js";
import { listenToConversation, restoreConversation } from "./conversation.js";
import { showError, showNotice, withCode } from "./dom.js";
import { showExamples } from "./examples-list.js";
import { listenToModels, restoreModel } from "./models-dialog.js";
import { listenToSettings, showSettings } from "./settings-dialog.js";
import { refresh, settings } from "./state.js";

async function start(): Promise<void> {
  showSettings();
  listenToModels();
  listenToConversation();
  listenToAttachments();
  listenToSettings();
  refresh();
  await restoreConversation();
  const support = await Mgm.support();
  if (!support.supported) {
    showNotice(withCode(support.reason ?? "This browser cannot run models.", support.code));
    return;
  }
  await showExamples();
  await restoreModel(settings.model);
  await restoreModel(settings.imageModel);
}

if ("serviceWorker" in navigator && location.protocol !== "file:") {
  navigator.serviceWorker.register("sw.js").catch(() => undefined);
}
start().catch(showError);
