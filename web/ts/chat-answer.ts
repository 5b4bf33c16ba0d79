import { MgmError } from "./errors.js";
import { anySignal } from "./http.js";
import type { Answer, Delta } from "./types.js";

/**
 * An answer in progress. `await` gives the whole {@link Answer}; `for await` streams it as {@link Delta}s, once. Leaving the loop early
 * stops the answer.
 *
 * Both `await` and the loop throw a failure. If nobody waits for the answer, it is an unhandled rejection, like that of any promise.
 */
export class ChatAnswer implements PromiseLike<Answer>, AsyncIterable<Delta> {
  readonly #deltas: Delta[] = [];
  readonly #stop = new AbortController();
  readonly #answer: Promise<Answer>;
  #isObserved = false;
  #isIterated = false;
  #isOver = false;
  #wake: () => void = () => undefined;

  /** @internal */
  constructor(run: (signal: AbortSignal, onDelta: (delta: Delta) => void) => Promise<Answer>, signal?: AbortSignal) {
    const either = signal ? anySignal([signal, this.#stop.signal]) : this.#stop.signal;
    this.#answer = run(either, (delta) => {
      this.#deltas.push(delta);
      this.#wake();
    });
    const end = () => {
      this.#isOver = true;
      this.#wake();
    };
    this.#answer.then(end, (error: unknown) => {
      end();
      // In a later task: callers may attach their handlers only after a few microtasks.
      setTimeout(() => {
        if (!this.#isObserved && !either.aborted) void Promise.reject(error as Error);
      });
    });
  }

  /** The whole answer, as a promise. */
  finished(): Promise<Answer> {
    this.#isObserved = true;
    return this.#answer;
  }

  then<A = Answer, B = never>(
    onfulfilled?: ((answer: Answer) => A | PromiseLike<A>) | null,
    onrejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.finished().then(onfulfilled, onrejected);
  }

  catch<B = never>(onrejected?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<Answer | B> {
    return this.finished().catch(onrejected);
  }

  finally(onfinally?: (() => void) | null): Promise<Answer> {
    return this.finished().finally(onfinally);
  }

  [Symbol.asyncIterator](): AsyncGenerator<Delta, void> {
    if (this.#isIterated) throw new MgmError("invalid-argument", "an answer can be streamed once; await it for the whole");
    this.#isIterated = true;
    this.#isObserved = true;
    return this.#stream();
  }

  async *#stream(): AsyncGenerator<Delta, void> {
    try {
      for (;;) {
        const delta = this.#deltas.shift();
        if (delta) {
          yield delta;
        } else if (this.#isOver) {
          yield { type: "done", answer: await this.#answer };
          return;
        } else {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
      }
    } finally {
      // Without effect on a finished answer.
      this.#stop.abort();
    }
  }
}
