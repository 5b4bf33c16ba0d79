// Messages as elements.

import DOMPurify from "dompurify";
import { marked } from "marked";
import { generatedImageElement } from "./generated-image.js";
import { objectUrl } from "./object-url.js";
import type { Entry } from "./store.js";

/** An answer without the description of its image, which is the image's caption. */
const withoutDescription = (text: string): string => text.replace(/<h>[^]*?(<\/h>|$)/g, "");

/** Renders a model's Markdown as safe elements: no scripts, no requests. */
export function markdown(text: string): DocumentFragment {
  const html = marked.parse(text, { async: false, gfm: true, breaks: true });
  const elements = DOMPurify.sanitize(html, {
    RETURN_DOM_FRAGMENT: true,
    // Without SVG and MathML: many of their elements and attributes send requests.
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["img", "style", "form", "input", "button", "audio", "video", "iframe"],
    FORBID_ATTR: ["style", "src", "srcset", "background"],
  });
  // Make scrollable elements reachable by keyboard.
  for (const wide of elements.querySelectorAll<HTMLElement>("pre, table")) wide.tabIndex = 0;
  lowerHeadings(elements);
  return elements;
}

/** Puts headings below the message's own (level 2), without gaps between the levels. */
function lowerHeadings(elements: DocumentFragment): void {
  /** The levels of the headings around the current one, as the model wrote them. */
  const outer: number[] = [];
  for (const heading of elements.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Number(heading.tagName.slice(1));
    while (outer.length > 0 && (outer.at(-1) ?? 0) >= level) outer.pop();
    outer.push(level);
    const lower = document.createElement(`h${Math.min(6, outer.length + 2)}`);
    lower.append(...heading.childNodes);
    heading.replaceWith(lower);
  }
}

/** Creates the element of a message, with functions to update it. */
export function messageElement(entry: Entry, onImage: (image: Blob) => void) {
  const element = document.createElement("article");
  element.className = `message ${entry.role}`;
  const title = document.createElement("h2");
  title.className = "unseen";
  title.textContent = entry.role === "user" ? "You" : "Answer";
  element.ariaLabel = title.textContent;
  element.append(title);
  if (entry.images.length > 0) {
    const images = document.createElement("div");
    images.className = "images";
    for (const [index, image] of entry.images.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Show the attention map";
      const preview = document.createElement("img");
      preview.src = objectUrl(image);
      preview.alt = `Image ${index + 1}: show the attention map`;
      const hint = document.createElement("span");
      hint.className = "hint";
      hint.textContent = "Attention map";
      hint.ariaHidden = "true";
      button.append(preview, hint);
      button.onclick = () => onImage(image);
      images.append(button);
    }
    element.append(images);
  }
  const text = document.createElement("div");
  text.className = "text";
  const facts = document.createElement("p");
  facts.className = "facts";
  const generated = generatedImageElement(entry);
  element.append(text, generated.element, facts);
  // While an answer is busy, screen readers wait.
  const update = (pending = false) => {
    element.setAttribute("aria-busy", String(pending));
    if (entry.role === "user") text.textContent = entry.text;
    else text.replaceChildren(markdown(entry.generated || pending ? withoutDescription(entry.text) : entry.text));
    text.hidden = entry.text === "" && entry.role === "user";
    facts.textContent = entry.facts ?? "";
    facts.hidden = !entry.facts;
    if (!pending) generated.update();
  };
  update();
  return { element, update, showStep: generated.showStep };
}
