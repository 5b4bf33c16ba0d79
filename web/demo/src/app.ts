// The page: one conversation with one model.

import { bundleUrl, cache, type Delta, type Message, Mgm, type Picture, type PictureSettings, type PictureStep, type Progress } from "mgm-webgpu";
import { type Choice, choices, device, megabytes } from "./models.js";
import { addressOf } from "./address.js";
import { type Example, exampleElements, examplePicture } from "./examples.js";
import { messageElement } from "./render.js";
import { type Entry, exported, loadConversation, loadSettings, saveConversation, saveSettings } from "./store.js";

/** The element with this id, which is in index.html. */
function $<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element ${id}`);
  return element as E;
}

const settings = loadSettings();
let entries: Entry[] = [];
let attachments: Blob[] = [];
let mgm: Mgm | undefined;
/** What is loaded: the model that answers, the one that paints. */
let names: string[] = [];
/** The button for pictures is pressed. */
let drawPressed = false;
/** What is under way and can be stopped. */
let busy: AbortController | undefined;

// ---- What the page says --------------------------------------------------------------------------------------------

function notice(text: string): void {
  $("notice").textContent = text;
  $("notice").hidden = text === "";
}

function sayError(error: unknown): void {
  if (error instanceof DOMException && error.name === "AbortError") return;
  notice(error instanceof Error ? error.message : String(error));
}

/** The least time between two times that an unfinished answer is kept, in milliseconds. */
const SAVE_INTERVAL = 2000;

const PHASES: Record<Progress["phase"], string> = {
  download: "Downloading", load: "Loading onto the GPU", recover: "The GPU was lost, loading again", check: "Checking",
  tune: "Measuring kernels",
};

function showProgress({ phase, part, loaded, total }: Progress): void {
  $("status").hidden = false;
  $("status-text").textContent = `${PHASES[phase]}${phase === "download" ? ` (${part})` : ""} ${megabytes(loaded)} of ${megabytes(total)}`;
  $<HTMLProgressElement>("progress").value = total > 0 ? loaded / total : 0;
  // What comes in the middle of an answer is followed by the answer.
  if (mgm && loaded === total) $("status").hidden = true;
}

function refresh(): void {
  $("welcome").hidden = entries.length > 0;
  $("send").hidden = busy !== undefined && mgm !== undefined;
  $("stop").hidden = !(busy !== undefined && mgm !== undefined);
  $<HTMLButtonElement>("export").disabled = entries.length === 0;
  $<HTMLButtonElement>("new").disabled = entries.length === 0 && busy === undefined;
  $<HTMLButtonElement>("model").disabled = busy !== undefined;
  $("draw").hidden = !mgm?.info.painter;
  $<HTMLButtonElement>("draw").ariaPressed = String(drawing());
  $<HTMLTextAreaElement>("question").placeholder = drawing() ? "Say what to draw" : "Ask about a picture";
}

/** Whether the next question asks for a picture. */
function drawing(): boolean {
  return mgm?.info.painter !== undefined && (drawPressed || !mgm.info.chats);
}

// ---- Models --------------------------------------------------------------------------------------------------------

/** Loads a model in the place of what is there, or, if it paints, beside one that answers. */
async function load(source: string | File[], name: string, known?: boolean): Promise<void> {
  if (busy) return;
  $<HTMLDialogElement>("models").close();
  notice("");
  const stop = new AbortController();
  busy = stop;
  refresh();
  const { signal } = stop;
  // What goes wrong with it is told by loading.
  const paints = known ?? (await Mgm.identify(source, { signal }).then(({ paints }) => paints, () => false));
  const beside = paints && mgm?.info.chats;
  if (!beside) {
    mgm?.dispose();
    mgm = undefined;
    names = [];
  }
  refresh();
  $("model-name").textContent = [...names, name].join(" + ");
  try {
    if (beside) await mgm?.loadPainter(source, { signal });
    else mgm = await Mgm.load(source, { signal, onProgress: showProgress });
    const precision = beside ? mgm?.info.painter?.precision : mgm?.info.precision;
    names = [...names.slice(0, 1), `${name} · ${precision}`];
    if (typeof source === "string") {
      settings[paints ? "painter" : "model"] = bundleUrl(source);
      if (!beside && paints) settings.model = "";
      saveSettings(settings);
    }
    $("question").focus();
  } catch (error) {
    sayError(error);
  } finally {
    busy = undefined;
    $("model-name").textContent = names.join(" + ") || "Choose a model";
    $("status").hidden = true;
    refresh();
  }
}

async function choose({ url, name, paints }: Choice): Promise<void> {
  await load(url, name, paints);
  // One that answers takes the place of both.
  if (!paints && mgm?.info.chats) await comeBack(settings.painter);
}

/** Loads a model that was used before, if it is on this device. */
async function comeBack(address: string): Promise<void> {
  const known = address && (await choices()).find(({ url, here }) => here && url === address);
  if (known) await load(known.url, known.name, known.paints);
}

/** Shows the examples, where the page comes with models for them. */
async function offerExamples(): Promise<void> {
  const starting = (await choices()).filter(({ starts }) => starts);
  const answers = starting.find(({ paints }) => !paints);
  const paints = starting.find(({ paints }) => paints);
  if (!answers) return;
  $("examples").replaceChildren(...exampleElements((example) => void tryOut(example, answers, paints).catch(sayError)));
  const bytes = megabytes(answers.bytes + (paints?.bytes ?? 0));
  $("try-text").textContent = `Try one, with ${answers.name}, a small model that comes with this page (${bytes}):`;
  $("try").hidden = false;
}

/** Asks an example's question. Its model comes first, the one that draws when it is needed or else afterwards. */
async function tryOut(example: Example, answers: Choice, paints: Choice | undefined): Promise<void> {
  if (busy) return;
  const addPainter = async () => {
    if (paints && mgm && !mgm.info.painter) await load(paints.url, paints.name, true);
  };
  if (!mgm?.info.sees) await load(answers.url, answers.name, false);
  if (example.draws) await addPainter();
  if (!mgm?.info.sees || (example.draws && !mgm.info.painter)) return;
  attachments = await examplePicture(example);
  $<HTMLTextAreaElement>("question").value = example.question;
  drawPressed = example.draws ?? false;
  await send();
  drawPressed = false;
  refresh();
  await addPainter();
}

async function showModels(): Promise<void> {
  const list = $("model-list");
  if (!$<HTMLDialogElement>("models").open) $<HTMLDialogElement>("models").showModal();
  $("device").textContent = await device();
  const all = await choices();
  const groups = [all.filter(({ paints }) => !paints), all.filter(({ paints }) => paints)] as const;
  list.replaceChildren(...groups[0].map(choiceElement));
  $("painter-list").replaceChildren(...groups[1].map(choiceElement));
  $("painters").hidden = groups[1].length === 0;
  if (groups[0].length === 0) {
    const hint = document.createElement("li");
    hint.textContent = "This page offers no models: load one from an address, or from files on this device.";
    list.replaceChildren(hint);
  }
  (list.querySelector("button") ?? $("model-url")).focus();
}

function choiceElement(choice: Choice): HTMLLIElement {
  const item = document.createElement("li");
  const about = document.createElement("div");
  const name = document.createElement("div");
  name.className = "name";
  name.textContent = choice.name;
  const facts = document.createElement("div");
  facts.className = "muted";
  const where = choice.here ? "on this device" : "to download";
  facts.textContent = [`${megabytes(choice.bytes)}, ${where}`, choice.doubt, choice.about].filter(Boolean).join(" · ");
  about.append(name, facts);
  const use = document.createElement("button");
  use.type = "button";
  use.textContent = choice.here ? "Use" : "Download";
  use.setAttribute("aria-label", `${use.textContent} ${choice.name}`);
  use.onclick = () => void choose(choice).catch(sayError);
  item.append(about, use);
  if (choice.here) {
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "Delete";
    remove.setAttribute("aria-label", `Delete ${choice.name} from this device`);
    remove.onclick = () => void cache.delete(choice.url).then(showModels, sayError);
    item.append(remove);
  }
  return item;
}

// ---- Conversation --------------------------------------------------------------------------------------------------

function append(entry: Entry): ReturnType<typeof messageElement> {
  const message = messageElement(entry, (image) => void look(image));
  $("log").append(message.element);
  return message;
}

function messages(): Message[] {
  const list: Message[] = entries.map(({ role, text, images, draws }) => {
    // As the model was asked then.
    const asked = draws ? `${text} <GEN>` : text;
    const pictures = images.map((image) => ({ type: "image" as const, image }));
    return { role, content: pictures.length > 0 ? [...pictures, { type: "text" as const, text: asked }] : asked };
  });
  if (settings.system) list.unshift({ role: "system", content: settings.system });
  return list;
}

async function keep(entries: Entry[]): Promise<void> {
  if (!(await saveConversation(entries))) notice("This browser does not keep the conversation (is this a private window, or the disk full?): Export saves it.");
}

/** Keeps the newest text in view, unless the user reads elsewhere. */
function follow(act: () => void): void {
  const main = document.querySelector("main");
  if (!main) return act();
  const near = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  act();
  if (near) main.scrollTop = main.scrollHeight;
}

async function send(): Promise<void> {
  const question = $<HTMLTextAreaElement>("question");
  const text = question.value.trim();
  if (busy || (text === "" && attachments.length === 0)) return;
  if (!mgm) {
    await showModels();
    return;
  }
  if (attachments.length > 0 && !mgm.info.sees) {
    notice(`This model ${mgm.info.chats ? "reads only text" : "only draws"}: choose one that sees pictures, or remove them.`);
    return;
  }
  notice("");
  const asksForPicture = drawing();
  if (asksForPicture && text === "") {
    notice("Say what to draw.");
    return;
  }
  const asked: Entry = { role: "user", text, images: attachments, ...(asksForPicture && { draws: true }) };
  entries.push(asked);
  append(asked);
  question.value = "";
  attachments = [];
  showAttachments();
  const prompt = messages();
  const answer: Entry = { role: "assistant", text: "", images: [] };
  const message = append(answer);
  message.element.classList.add("pending");
  const stop = new AbortController();
  busy = stop;
  refresh();
  follow(() => message.element.scrollIntoView({ block: "end" }));
  message.update(true);
  // What was asked, and what there is of the answer, outlast a reload.
  await keep(entries);
  let saved = performance.now();
  let scheduled = false;
  const repaint = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      if (busy === stop) follow(() => message.update(true));
    });
  };
  const onDelta = async (delta: Delta) => {
    answer.text += delta.text;
    if (delta.step) {
      const { step } = delta;
      follow(() => message.step(step));
    }
    if (delta.picture) answer.picture = kept(delta.picture);
    answer.facts = [answer.facts, facts(delta)].filter(Boolean).join(" · ");
    repaint();
    if (delta.text !== "" && performance.now() - saved > SAVE_INTERVAL) {
      saved = performance.now();
      await keep([...entries, answer]);
    }
  };
  try {
    await answerTo(mgm, prompt, asksForPicture, stop.signal, onDelta);
    if (asksForPicture && !answer.text.includes("</h>") && !answer.picture) {
      answer.facts = [answer.facts, "the answer describes no picture"].filter(Boolean).join(" · ");
    }
  } catch (error) {
    if (stop.signal.aborted) {
      answer.facts = "stopped";
    } else if (answer.text === "") {
      // The question goes back to where it can be sent again.
      entries.pop();
      message.element.previousElementSibling?.remove();
      message.element.remove();
      question.value = text;
      attachments = asked.images;
      showAttachments();
      sayError(error);
    } else {
      answer.facts = `ended early: ${error instanceof Error ? error.message : String(error)}`;
    }
  } finally {
    busy = undefined;
    $("status").hidden = true;
    message.element.classList.remove("pending");
    follow(() => message.update());
    if (entries.includes(asked)) entries.push(answer);
    await keep(entries);
    refresh();
    question.focus();
  }
}

/** Makes an answer, or, with a model that only paints, a picture as one. */
async function answerTo(
  mgm: Mgm,
  messages: Message[],
  asksForPicture: boolean,
  signal: AbortSignal,
  onDelta: (delta: Delta) => Promise<void>,
): Promise<void> {
  const { temperature, maxNewTokens, steps, guidance, side } = settings;
  const picture: PictureSettings = { steps, guidance, previews: true, ...(side > 0 && { width: side, height: side }) };
  if (mgm.info.chats) {
    const when = asksForPicture ? "always" : "auto";
    const chat = mgm.chat(messages, { temperature, maxNewTokens, signal, picture: { when, ...picture } });
    for await (const delta of chat) await onDelta(delta);
    return;
  }
  const prompt = entries.at(-1)?.text ?? "";
  const onStep = (step: PictureStep) => void onDelta({ text: "", step });
  await onDelta({ text: "", picture: await mgm.generate({ prompt, ...picture, onStep, signal }) });
}

const kept = ({ png, settings: { prompt, seed, width, height } }: Picture) => ({ png, prompt, seed, width, height });

function facts({ timings, usage, finishReason, picture, pictureError }: Delta): string {
  if (pictureError) return `not drawn: ${pictureError.message}`;
  if (picture) {
    const { timings, settings } = picture;
    return `drawn in ${(timings.totalMs / 1000).toFixed(1)} s, ${(timings.stepMs / 1000).toFixed(2)} s a step · seed ${settings.seed}`;
  }
  if (!timings || !usage) return "";
  const parts = [
    `${timings.tokensPerSecond.toFixed(1)} tokens/s`,
    `first after ${(timings.firstTokenMs / 1000).toFixed(1)} s`,
    `${usage.completionTokens} tokens`,
  ];
  if (finishReason === "length") parts.push("reached the limit");
  if (usage.droppedTurns > 0) parts.push(`the context is full: ${usage.droppedTurns} of the oldest turns were left out`);
  return parts.join(" · ");
}

async function startOver(): Promise<void> {
  // An answer is stopped; a model that is coming goes on coming.
  if (mgm) busy?.abort();
  entries = [];
  $("log").replaceChildren();
  refresh();
  $("question").focus();
  await keep(entries);
}

async function save(): Promise<void> {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await exported(entries, settings.system));
  link.download = `conversation-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  // Some browsers come for it later.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ---- Pictures ------------------------------------------------------------------------------------------------------

function attach(files: Iterable<File>): void {
  const all = [...files];
  const pictures = all.filter((file) => file.type.startsWith("image/"));
  const others = all.filter((file) => !pictures.includes(file)).map((file) => file.name || file.type);
  if (others.length > 0) notice(`No picture: ${others.join(", ")}`);
  attachments = [...attachments, ...pictures];
  showAttachments();
  if (pictures.length > 0) $("question").focus();
}

function showAttachments(): void {
  const items = attachments.map((image, index) => {
    const item = document.createElement("li");
    const picture = document.createElement("img");
    picture.src = addressOf(image);
    picture.alt = `Picture ${index + 1}`;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove picture ${index + 1}`);
    remove.onclick = () => {
      attachments = attachments.filter((other) => other !== image);
      showAttachments();
      $("question").focus();
    };
    item.append(picture, remove);
    return item;
  });
  $("attachments").replaceChildren(...items);
}

async function look(image: Blob): Promise<void> {
  if (!mgm?.info.sees || busy) {
    notice(busy ? "Wait for the answer first." : "Load a model that sees pictures to show what it looks at.");
    return;
  }
  const canvas = $<HTMLCanvasElement>("look-canvas");
  busy = new AbortController();
  refresh();
  try {
    const map = await mgm.look(image, { signal: busy.signal });
    const { drawLook } = await import("./look.js");
    await drawLook(canvas, image, map);
    $<HTMLDialogElement>("look").showModal();
  } catch (error) {
    sayError(error);
  } finally {
    busy = undefined;
    refresh();
  }
}

// ---- Settings ------------------------------------------------------------------------------------------------------

function showSettings(): void {
  document.documentElement.dataset["theme"] = settings.theme;
  $<HTMLSelectElement>("theme").value = settings.theme;
  $<HTMLInputElement>("temperature").value = String(settings.temperature);
  $("temperature-value").textContent = settings.temperature === 0 ? "0: always the likeliest token" : String(settings.temperature);
  $<HTMLInputElement>("tokens").value = String(settings.maxNewTokens);
  $<HTMLTextAreaElement>("system").value = settings.system;
  $<HTMLInputElement>("steps").value = String(settings.steps);
  $<HTMLInputElement>("guidance").value = String(settings.guidance);
  $<HTMLSelectElement>("side").value = String(settings.side);
}

function readSettings(): void {
  settings.theme = $<HTMLSelectElement>("theme").value as typeof settings.theme;
  settings.temperature = Number($<HTMLInputElement>("temperature").value);
  settings.maxNewTokens = Math.max(1, Math.floor(Number($<HTMLInputElement>("tokens").value) || 512));
  settings.system = $<HTMLTextAreaElement>("system").value.trim();
  settings.steps = Math.min(1000, Math.max(1, Math.floor(Number($<HTMLInputElement>("steps").value) || 20)));
  settings.guidance = Math.min(1000, Math.max(0, Number($<HTMLInputElement>("guidance").value)));
  settings.side = Number($<HTMLSelectElement>("side").value);
  saveSettings(settings);
  showSettings();
}

async function check(): Promise<void> {
  const result = $("check-result");
  result.textContent = "Checking every kernel against its reference …";
  try {
    const cases = await Mgm.selfCheck();
    const bad = cases.filter(({ failure }) => failure);
    result.textContent =
      bad.length === 0
        ? `All ${cases.length} kernels are right on this device.`
        : `${bad.length} of ${cases.length} kernels are wrong on this device; answers would make no sense. First: ${bad[0]?.failure}`;
  } catch (error) {
    result.textContent = error instanceof Error ? error.message : String(error);
  }
}

// ---- Events --------------------------------------------------------------------------------------------------------

function listen(): void {
  $("model").onclick = $("welcome-model").onclick = () => void showModels().catch(sayError);
  $("model-load").onclick = () => {
    const url = $<HTMLInputElement>("model-url");
    if (url.value && url.reportValidity()) void load(url.value, new URL(url.value).pathname.split("/").filter(Boolean).at(-1) ?? "model");
  };
  const chosen = (input: HTMLInputElement) => {
    const files = [...(input.files ?? [])];
    if (files.length > 0) void load(files, files[0]?.webkitRelativePath.split("/")[0] || (files[0]?.name ?? "model"));
    input.value = "";
  };
  $("model-files").onclick = () => $("model-file-input").click();
  $("model-folder").onclick = () => $("model-folder-input").click();
  for (const id of ["model-file-input", "model-folder-input"]) $(id).onchange = () => chosen($<HTMLInputElement>(id));

  $("composer").onsubmit = (event) => {
    event.preventDefault();
    void send();
  };
  $("question").onkeydown = (event) => {
    // Enter while an input method composes a word belongs to it.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      void send();
    }
  };
  $("stop").onclick = $("cancel").onclick = () => busy?.abort();
  document.onkeydown = (event) => {
    if (event.key === "Escape" && mgm && !document.querySelector("dialog[open]")) busy?.abort();
  };
  $("new").onclick = () => void startOver();
  $("export").onclick = () => void save().catch(sayError);

  $("draw").onclick = () => {
    drawPressed = !drawPressed;
    refresh();
    $("question").focus();
  };
  $("attach").onclick = () => $("files").click();
  $("photograph").onclick = () => $("camera").click();
  for (const id of ["files", "camera"]) {
    const input = $<HTMLInputElement>(id);
    input.onchange = () => {
      attach(input.files ?? []);
      input.value = "";
    };
  }
  document.onpaste = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.some((file) => file.type.startsWith("image/"))) {
      event.preventDefault();
      attach(files);
    }
  };
  let depth = 0;
  const dropping = (change: number) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.ondragenter = (event) => event.dataTransfer?.types.includes("Files") && dropping(1);
  document.ondragleave = () => dropping(-1);
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    dropping(-depth);
    attach(event.dataTransfer?.files ?? []);
  };

  $("settings").onclick = () => {
    showSettings();
    $<HTMLDialogElement>("preferences").showModal();
  };
  for (const id of ["theme", "temperature", "tokens", "system", "steps", "guidance", "side"]) $(id).onchange = readSettings;
  $("temperature").oninput = readSettings;
  $("check").onclick = () => void check();
}

async function start(): Promise<void> {
  showSettings();
  listen();
  refresh();
  entries = await loadConversation();
  // What was not answered before the page went away can be asked again.
  const unanswered = entries.at(-1)?.role === "user" ? entries.pop() : undefined;
  for (const entry of entries) append(entry);
  if (unanswered) {
    $<HTMLTextAreaElement>("question").value = unanswered.text;
    attachments = unanswered.images;
    drawPressed = unanswered.draws ?? false;
    showAttachments();
  }
  refresh();
  document.querySelector("main")?.scrollTo(0, Number.MAX_SAFE_INTEGER);
  const support = await Mgm.support();
  if (!support.supported) {
    notice(support.reason ?? "This browser cannot run models.");
    return;
  }
  await offerExamples();
  await comeBack(settings.model);
  await comeBack(settings.painter);
}

if ("serviceWorker" in navigator && location.protocol !== "file:") {
  navigator.serviceWorker.register("sw.js").catch(() => undefined);
}
start().catch(sayError);
