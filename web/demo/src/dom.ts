// Elements of the page.

import { MgmError } from "mgm-webgpu";

/** The element with this id in index.html. */
export function $<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element ${id}`);
  return element as E;
}

/** Lets a screen reader say something that the page shows in another way. */
export function announce(text: string): void {
  $("announcement").textContent = text;
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

/** The message of an error, with its code if it is one of the package. */
export function messageOf(error: unknown): string {
  if (error instanceof MgmError) return withCode(error.message, error.code);
  return error instanceof Error ? error.message : String(error);
}

/** A message with the code to search for, if there is one. */
export const withCode = (message: string, code?: string): string => (code ? `${message} (${code})` : message);
