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

/** Does something with the conversations; nothing comes of it where the browser keeps nothing. */
async function transact<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T | undefined> {
  const database = await open();
  try {
    return await new Promise<T>((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      // A disk that is full shows itself at the end.
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error ?? new Error("the database failed"));
    });
  } finally {
    database.close();
  }
}

/** A conversation as it is kept. */
interface Kept {
  entries: Entry[];
  saved: number;
}

/** Conversations that are kept from earlier visits: each tab has its own. */
const MOST = 8;
const TAB = "mgm-conversation";

/** The name of this tab's conversation, the same after a reload. */
function tab(): string {
  let name = sessionStorage.getItem(TAB);
  if (!name) sessionStorage.setItem(TAB, (name = crypto.randomUUID()));
  return name;
}

async function all(): Promise<[name: string, kept: Kept][]> {
  const [names, values] = await Promise.all([
    transact("readonly", (store) => store.getAllKeys()),
    transact("readonly", (store) => store.getAll() as IDBRequest<Kept[]>),
  ]);
  const pairs = (names ?? []).map((name, index) => [String(name), values?.[index]] as const);
  const whole = pairs.filter((pair): pair is readonly [string, Kept] => Array.isArray(pair[1]?.entries));
  return whole.map(([name, kept]): [string, Kept] => [name, kept]).sort(([, a], [, b]) => b.saved - a.saved);
}

/** This tab's conversation; in a new tab the last of any. */
export async function loadConversation(): Promise<Entry[]> {
  try {
    const kept = await all();
    // Here rather than at every save, since it reads them all.
    for (const [name] of kept.slice(MOST)) await transact("readwrite", (store) => store.delete(name));
    const own = kept.find(([name]) => name === tab());
    return (own ?? kept[0])?.[1].entries ?? [];
  } catch {
    return [];
  }
}

/** Keeps this tab's conversation; whether that went well. */
export async function saveConversation(entries: Entry[]): Promise<boolean> {
  try {
    await transact("readwrite", (store) => store.put({ entries, saved: Date.now() } satisfies Kept, tab()));
    return true;
  } catch {
    return false;
  }
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
