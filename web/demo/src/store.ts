// What the page keeps between visits: the conversation with its pictures in IndexedDB, settings in localStorage.

/** A message of the conversation as the page keeps it. */
export interface Entry {
  role: "user" | "assistant";
  text: string;
  images: Blob[];
  /** Of a question: whether a picture was asked for with the button. */
  draws?: boolean;
  /** Of an answer: what was painted. */
  picture?: { png: Blob; prompt: string; seed: number; width: number; height: number };
  /** Facts shown below an answer. */
  facts?: string;
}

export interface Settings {
  theme: "" | "light" | "dark";
  temperature: number;
  maxNewTokens: number;
  system: string;
  /** The model that was used last, by its address. */
  model: string;
  /** The model that painted last, by its address. */
  painter: string;
  /** Steps of a picture. */
  steps: number;
  guidance: number;
  /** Pixels along a side of a picture; 0 for what the model was trained on. */
  side: number;
}

const DEFAULTS: Settings = { theme: "", temperature: 0.2, maxNewTokens: 512, system: "", model: "", painter: "", steps: 20, guidance: 5, side: 0 };
const SETTINGS = "mgm-settings";
const DATABASE = "mgm-demo";
const STORE = "conversation";

export function loadSettings(): Settings {
  try {
    return { ...DEFAULTS, ...(JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") as Partial<Settings>) };
  } catch {
    return { ...DEFAULTS };
  }
}

export function saveSettings(settings: Settings): void {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // A page that may keep nothing still works.
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

async function transact<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T | undefined> {
  try {
    const database = await open();
    try {
      return await new Promise<T>((resolve, reject) => {
        const request = act(database.transaction(STORE, mode).objectStore(STORE));
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error ?? new Error("the database failed"));
      });
    } finally {
      database.close();
    }
  } catch {
    return undefined;
  }
}

export async function loadConversation(): Promise<Entry[]> {
  const entries = await transact<unknown>("readonly", (store) => store.get("entries"));
  return Array.isArray(entries) ? (entries as Entry[]) : [];
}

export async function saveConversation(entries: Entry[]): Promise<void> {
  await transact("readwrite", (store) => store.put(entries, "entries"));
}

/** The conversation as a file: messages as in OpenAI's chat API, pictures inside. */
export async function exported(entries: Entry[], system: string): Promise<Blob> {
  const messages: unknown[] = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, images, picture } of entries) {
    const pictures = await Promise.all([...images, ...(picture ? [picture.png] : [])].map(toDataUrl));
    const parts = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
    messages.push({ role, content: parts.length > 0 ? [...parts, { type: "text", text }] : text });
  }
  return new Blob([JSON.stringify({ messages }, null, 2)], { type: "application/json" });
}

function toDataUrl(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error ?? new Error("the picture cannot be read"));
    reader.readAsDataURL(blob);
  });
}
