const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
const element = (id: string) => document.getElementById(id) as HTMLElement;

worker.onmessage = ({ data }: MessageEvent<{ text?: string; done?: boolean; error?: string }>) => {
  if (data.text) element("answer").append(data.text);
  element("status").textContent = data.error ?? (data.done ? "done" : "answering");
};

element("ask").onclick = () => {
  element("answer").textContent = "";
  worker.postMessage([{ role: "user", content: (element("question") as HTMLInputElement).value }]);
};
