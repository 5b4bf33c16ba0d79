import { type SubmitEvent, useRef, useState } from "react";
import { describe, useModel } from "./use-model";

export function Chat() {
  const { mgm, progress, error } = useModel("/models/pocket/");
  const [answer, setAnswer] = useState("");
  const [failure, setFailure] = useState("");
  const [busy, setBusy] = useState(false);
  const abort = useRef<AbortController>(undefined);

  async function ask(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault();
    if (!mgm) return;
    const form = new FormData(event.currentTarget);
    const image = form.get("image");
    const question = String(form.get("question"));
    const content = image instanceof File && image.size > 0 ? [image, question] : question;
    abort.current = new AbortController();
    setAnswer("");
    setFailure("");
    setBusy(true);
    try {
      for await (const delta of mgm.chat([{ role: "user", content }], { signal: abort.current.signal })) {
        if (delta.type === "text") setAnswer((answer) => answer + delta.text);
      }
    } catch (error) {
      setFailure(describe(error));
    } finally {
      setBusy(false);
    }
  }

  const status = error ? describe(error) : (mgm ? "ready" : `${progress?.phase ?? "starting"} …`);
  return (
    <form onSubmit={ask}>
      <p role="status">{status}</p>
      <p><input name="image" type="file" accept="image/*" aria-label="Image" /></p>
      <p><input name="question" defaultValue="What does the text say?" aria-label="Question" /></p>
      <p>
        <button disabled={!mgm || busy}>Ask</button>{" "}
        <button type="button" disabled={!busy} onClick={() => abort.current?.abort()}>Stop</button>
      </p>
      <p id="answer" aria-live="polite">{answer}</p>
      <p role="alert">{failure}</p>
    </form>
  );
}
