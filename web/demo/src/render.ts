// Messages as elements.

import DOMPurify from "dompurify";
import { marked } from "marked";
import { addressOf } from "./address.js";
import { pictureElement } from "./picture.js";
import type { Entry } from "./store.js";

/** An answer as people read it: the picture's description is the picture's caption. */
const readable = (text: string): string => text.replace(/<h>[^]*?(<\/h>|$)/g, "");

/** Markdown of a model as safe elements. What a model writes can be no more than text: no scripts, no requests. */
export function markdown(text: string): DocumentFragment {
  const html = marked.parse(text, { async: false, gfm: true, breaks: true });
  const elements = DOMPurify.sanitize(html, {
    RETURN_DOM_FRAGMENT: true,
    // Without SVG and MathML, whose elements and attributes fetch in many ways.
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["img", "style", "form", "input", "button", "audio", "video", "iframe"],
    FORBID_ATTR: ["style", "src", "srcset", "background"],
  });
  // What scrolls can be scrolled with the keyboard, and headings come below the page's own.
  for (const wide of elements.querySelectorAll<HTMLElement>("pre, table")) wide.tabIndex = 0;
  for (const heading of elements.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const lower = document.createElement(`h${Math.min(6, Number(heading.tagName.slice(1)) + 2)}`);
    lower.append(...heading.childNodes);
    heading.replaceWith(lower);
  }
  return elements;
}

/** The element of a message, and a way to change its text. */
export function messageElement(entry: Entry, onPicture: (image: Blob) => void) {
  const element = document.createElement("article");
  element.className = `message ${entry.role}`;
  element.setAttribute("aria-label", entry.role === "user" ? "You" : "Answer");
  if (entry.images.length > 0) {
    const pictures = document.createElement("div");
    pictures.className = "pictures";
    for (const [index, image] of entry.images.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "What the model looked at";
      const picture = document.createElement("img");
      picture.src = addressOf(image);
      picture.alt = `Picture ${index + 1}: show what the model looked at`;
      const hint = document.createElement("span");
      hint.className = "hint";
      hint.textContent = "What it looked at";
      hint.ariaHidden = "true";
      button.append(picture, hint);
      button.onclick = () => onPicture(image);
      pictures.append(button);
    }
    element.append(pictures);
  }
  const text = document.createElement("div");
  text.className = "text";
  const facts = document.createElement("p");
  facts.className = "facts";
  const picture = pictureElement(entry);
  element.append(text, picture.element, facts);
  /** While more is to come, screen readers wait with what is new. */
  const update = (pending = false) => {
    element.setAttribute("aria-busy", String(pending));
    if (entry.role === "user") text.textContent = entry.text;
    else text.replaceChildren(markdown(entry.picture || pending ? readable(entry.text) : entry.text));
    text.hidden = entry.text === "" && entry.role === "user";
    facts.textContent = entry.facts ?? "";
    facts.hidden = !entry.facts;
    if (!pending) picture.update();
  };
  update();
  return { element, update, step: picture.step };
}
