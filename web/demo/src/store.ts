// What the page stores between visits: the conversation with its images in IndexedDB, settings in localStorage. No
// library (`idb`): one store needs only `open` and `transact`.

import { defaults } from "mgm-webgpu";

/** A message of the conversation. */
export interface Entry {
  role: "user" | "assistant";
  text: string;
  images: Blob[];
  /** Of a question: whether it asked for an image with the button. */
  asksForImage?: boolean;
  /** Of an answer: its generated image. */
  generated?: { png: Blob; prompt: string; seed: number; width: number; height: number };
  /** Facts shown below an answer. */
  facts?: string;
}

export interface Settings {
  theme: "" | "light" | "dark";
  temperature: number;
  maxNewTokens: number;
  system: string;
  /** URL of the last chat model. */
  model: string;
  /** URL of the last image model. */
  imageModel: string;
  /** Inference steps of an image. */
  steps: number;
  guidanceScale: number;
  /** Width and height of an image in pixels; 0 for the model's default. */
  side: number;
}

export const DEFAULT_SETTINGS: Settings = {
  theme: "", temperature: defaults.temperature, maxNewTokens: defaults.maxNewTokens, system: "", model: "", imageModel: "",
  // Fewer than the package's default, for speed.
  steps: 20,
  guidanceScale: defaults.guidanceScale, side: 0,
};
const SETTINGS = "mgm-settings";
const DATABASE = "mgm-demo";
const STORE = "conversation";

export function loadSettings(): Settings {
  try {
    return { ...DEFAULT_SETTINGS, ...(JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") as Partial<Settings>) };
  } catch {
    return { ...DEFAULT_SETTINGS };
  }
}

export function saveSettings(settings: Settings): void {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // Without storage, settings last until the page is closed.
  }
}

function open(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("no database"));
  });
}

/** Runs a request on the store of conversations. */
async function transact<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T | undefined> {
  const database = await open();
  try {
    return await new Promise<T>((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      // A full disk fails when the transaction commits.
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error ?? new Error("the database failed"));
    });
  } finally {
    database.close();
  }
}

/** A stored conversation. */
interface StoredConversation {
  entries: Entry[];
  saved: number;
}

/** Maximum number of stored conversations. Each tab has its own. */
const MAX_CONVERSATIONS = 8;
const TAB = "mgm-conversation";

/** The key of this tab's conversation, the same after a reload. */
function tabKey(): string {
  let name = sessionStorage.getItem(TAB);
  if (!name) sessionStorage.setItem(TAB, (name = crypto.randomUUID()));
  return name;
}

async function all(): Promise<[name: string, stored: StoredConversation][]> {
  const [names, values] = await Promise.all([
    transact("readonly", (store) => store.getAllKeys()),
    transact("readonly", (store) => store.getAll() as IDBRequest<StoredConversation[]>),
  ]);
  const pairs = (names ?? []).map((name, index) => [String(name), values?.[index]] as const);
  const whole = pairs.filter((pair): pair is readonly [string, StoredConversation] => Array.isArray(pair[1]?.entries));
  return whole.map(([name, stored]): [string, StoredConversation] => [name, stored]).sort(([, a], [, b]) => b.saved - a.saved);
}

/** This tab's conversation; in a new tab the latest of all tabs. */
export async function loadConversation(): Promise<Entry[]> {
  try {
    const stored = await all();
    // Done here, not with each save, because it reads all of them.
    for (const [name] of stored.slice(MAX_CONVERSATIONS)) await transact("readwrite", (store) => store.delete(name));
    const own = stored.find(([name]) => name === tabKey());
    return (own ?? stored[0])?.[1].entries ?? [];
  } catch {
    return [];
  }
}

/** Stores this tab's conversation. Returns whether it succeeded. */
export async function saveConversation(entries: Entry[]): Promise<boolean> {
  try {
    await transact("readwrite", (store) => store.put({ entries, saved: Date.now() } satisfies StoredConversation, tabKey()));
    return true;
  } catch {
    return false;
  }
}

/** The conversation as a JSON file: messages as in OpenAI's chat API, with images as data URLs. */
export async function exported(entries: Entry[], system: string): Promise<Blob> {
  const messages: unknown[] = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, images, generated } of entries) {
    const urls = await Promise.all([...images, ...(generated ? [generated.png] : [])].map(toDataUrl));
    const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
    messages.push({ role, content: parts.length > 0 ? [...parts, { type: "text", text }] : text });
  }
  return new Blob([JSON.stringify({ messages }, null, 2)], { type: "application/json" });
}

function toDataUrl(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error ?? new Error("the image cannot be read"));
    reader.readAsDataURL(blob);
  });
}
