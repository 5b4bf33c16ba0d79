// The conversation: questions, answers, and their storage.

import type { Delta, GeneratedImage, ImageSettings, Message, Mgm } from "mgm-webgpu";
import { showAttachments } from "./attachments.js";
import { showAttentionMap } from "./attention-dialog.js";
import { $, messageOf, showError, showNotice } from "./dom.js";
import { showModels } from "./models-dialog.js";
import { messageElement } from "./render.js";
import { asksForImage, refresh, settings, state } from "./state.js";
import { type Entry, exported, loadConversation, saveConversation } from "./store.js";

/** The shortest time between two saves of an unfinished answer, in milliseconds. */
const SAVE_INTERVAL = 2000;

type MessageElement = ReturnType<typeof messageElement>;

function append(entry: Entry): MessageElement {
  const message = messageElement(entry, (image) => void showAttentionMap(image));
  $("log").append(message.element);
  return message;
}

/** The conversation as the model reads it. */
function messages(): Message[] {
  const list: Message[] = state.entries.map(({ role, text, images }) => ({ role, content: images.length > 0 ? [...images, text] : text }));
  if (settings.system) list.unshift({ role: "system", content: settings.system });
  return list;
}

async function save(entries: Entry[]): Promise<void> {
  if (!(await saveConversation(entries))) {
    showNotice("This browser does not store the conversation (a private window, or a full disk?). Export saves it as a file.");
  }
}

/** Keeps the newest text in view, unless the user has scrolled away from it. */
function follow(act: () => void): void {
  const main = document.querySelector("main");
  if (!main) return act();
  const isNearEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  act();
  if (isNearEnd) main.scrollTop = main.scrollHeight;
}

/** Takes the question and its images from the form, if they can be sent. */
async function takeQuestion(): Promise<Entry | undefined> {
  const question = $<HTMLTextAreaElement>("question");
  const text = question.value.trim();
  const { mgm, busy, attachments: images } = state;
  if (busy || (text === "" && images.length === 0)) return undefined;
  if (!mgm) {
    await showModels();
    return undefined;
  }
  if (images.length > 0 && !mgm.info.vision) {
    showNotice(`This model ${mgm.info.chat ? "reads only text" : "only generates images"}: choose a model with vision, or remove the images.`);
    return undefined;
  }
  showNotice("");
  if (asksForImage() && text === "") {
    showNotice("Describe the image to generate.");
    return undefined;
  }
  question.value = "";
  state.attachments = [];
  showAttachments();
  return { role: "user", text, images, ...(asksForImage() && { asksForImage: true }) };
}

/** Puts a question back into the form. */
function restoreQuestion({ text, images }: Entry): void {
  $<HTMLTextAreaElement>("question").value = text;
  state.attachments = images;
  showAttachments();
}

export async function send(): Promise<void> {
  const asked = await takeQuestion();
  if (!asked || !state.mgm) return;
  state.entries.push(asked);
  append(asked);
  const prompt = messages();
  const answer: Entry = { role: "assistant", text: "", images: [] };
  const message = append(answer);
  message.element.classList.add("pending");
  const stop = new AbortController();
  state.busy = stop;
  refresh();
  follow(() => message.element.scrollIntoView({ block: "end" }));
  message.update(true);
  // The question and the unfinished answer survive a reload.
  await save(state.entries);
  try {
    await runAnswer(state.mgm, prompt, asked, stop.signal, deltaHandler(answer, message, stop));
    if (asked.asksForImage && !answer.text.includes("</h>") && !answer.generated) addFact(answer, "the answer describes no image");
  } catch (error) {
    if (stop.signal.aborted) {
      answer.facts = "stopped";
    } else if (answer.text === "") {
      state.entries.pop();
      message.element.previousElementSibling?.remove();
      message.element.remove();
      restoreQuestion(asked);
      showError(error);
    } else {
      answer.facts = `ended early: ${messageOf(error)}`;
    }
  } finally {
    state.busy = undefined;
    $("status").hidden = true;
    message.element.classList.remove("pending");
    follow(() => message.update());
    if (state.entries.includes(asked)) state.entries.push(answer);
    await save(state.entries);
    refresh();
    $("question").focus();
  }
}

/** Adds the deltas of an answer to its entry and its element. */
function deltaHandler(answer: Entry, message: MessageElement, stop: AbortController): (delta: Delta) => Promise<void> {
  let saved = performance.now();
  let isScheduled = false;
  const update = () => {
    if (isScheduled) return;
    isScheduled = true;
    requestAnimationFrame(() => {
      isScheduled = false;
      if (state.busy === stop) follow(() => message.update(true));
    });
  };
  return async (delta) => {
    switch (delta.type) {
      case "text":
        answer.text += delta.text;
        break;
      case "step":
        follow(() => message.showStep(delta.step));
        break;
      case "image":
        answer.generated = toStored(delta.image);
        break;
    }
    addFact(answer, facts(delta));
    update();
    if (delta.type === "text" && performance.now() - saved > SAVE_INTERVAL) {
      saved = performance.now();
      await save([...state.entries, answer]);
    }
  };
}

/** Streams an answer, or generates an image if there is no chat model. */
async function runAnswer(
  mgm: Mgm,
  messages: Message[],
  asked: Entry,
  signal: AbortSignal,
  onDelta: (delta: Delta) => Promise<void>,
): Promise<void> {
  const { temperature, maxNewTokens, steps, guidanceScale, side } = settings;
  const image: ImageSettings = { steps, guidanceScale, previews: true, ...(side > 0 && { width: side, height: side }) };
  if (mgm.info.chat) {
    const mode = asked.asksForImage ? "always" : "auto";
    for await (const delta of mgm.chat(messages, { temperature, maxNewTokens, signal, image: { mode, ...image } })) await onDelta(delta);
    return;
  }
  const generated = await mgm.generate({ prompt: asked.text, ...image, onStep: (step) => void onDelta({ type: "step", step }), signal });
  await onDelta({ type: "image", image: generated });
}

const toStored = ({ png, settings: { prompt, seed, width, height } }: GeneratedImage) => ({ png, prompt, seed, width, height });

function addFact(entry: Entry, fact: string): void {
  entry.facts = [entry.facts, fact].filter(Boolean).join(" · ");
}

/** What the page shows below an answer. */
function facts(delta: Delta): string {
  const seconds = (milliseconds: number, digits: number) => `${(milliseconds / 1000).toFixed(digits)} s`;
  switch (delta.type) {
    case "image": {
      const { timings, settings } = delta.image;
      return `image generated in ${seconds(timings.totalMs, 1)}, ${seconds(timings.stepMs, 2)} per step · seed ${settings.seed}`;
    }
    case "image-error":
      return `no image: ${delta.error.message}`;
    case "done": {
      const { timings, usage, finishReason } = delta.answer;
      const parts = [
        `${timings.tokensPerSecond.toFixed(1)} tokens/s`,
        `first token after ${seconds(timings.firstTokenMs, 1)}`,
        `${usage.completionTokens} tokens`,
      ];
      if (finishReason === "length") parts.push("token limit reached");
      if (usage.droppedTurns > 0) parts.push(`context full: the ${usage.droppedTurns} oldest turns were dropped`);
      return parts.join(" · ");
    }
    default:
      return "";
  }
}

/** Starts a new conversation. Stops an answer, but not the load of a model. */
async function startOver(): Promise<void> {
  if (state.mgm) state.busy?.abort();
  state.entries = [];
  state.hasOwnImages = state.attachments.length > 0;
  $("log").replaceChildren();
  refresh();
  $("question").focus();
  await save(state.entries);
}

async function exportConversation(): Promise<void> {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await exported(state.entries, settings.system));
  link.download = `conversation-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  // Some browsers read the blob later.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Shows the conversation of an earlier visit. A question without an answer goes back into the form. */
export async function restoreConversation(): Promise<void> {
  state.entries = await loadConversation();
  const unanswered = state.entries.at(-1)?.role === "user" ? state.entries.pop() : undefined;
  for (const entry of state.entries) append(entry);
  if (unanswered) {
    restoreQuestion(unanswered);
    state.isImageButtonPressed = unanswered.asksForImage ?? false;
  }
  refresh();
  document.querySelector("main")?.scrollTo(0, Number.MAX_SAFE_INTEGER);
}

export function listenToConversation(): void {
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    void send();
  };
  $("question").onkeydown = (event) => {
    // While an input method composes a word, Enter belongs to it.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      void send();
    }
  };
  $("stop").onclick = $("cancel").onclick = () => state.busy?.abort();
  document.onkeydown = (event) => {
    if (event.key === "Escape" && state.mgm && !document.querySelector("dialog[open]")) state.busy?.abort();
  };
  $("new").onclick = () => void startOver();
  $("export").onclick = () => void exportConversation().catch(showError);
  $("request-image").onclick = () => {
    state.isImageButtonPressed = !state.isImageButtonPressed;
    refresh();
    $("question").focus();
  };
}
