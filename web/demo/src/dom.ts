// Elements of the page.

/** The element with this id in index.html. */
export function $<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element ${id}`);
  return element as E;
}

/** Shows a message at the top of the page; an empty one removes it. */
export function showNotice(text: string): void {
  $("notice").textContent = text;
  $("notice").hidden = text === "";
}

/** Shows an error, unless the user aborted the call. */
export function showError(error: unknown): void {
  if (error instanceof DOMException && error.name === "AbortError") return;
  showNotice(messageOf(error));
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
