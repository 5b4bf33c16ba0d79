/**
 * Cuts a streamed text before the first occurrence of a stop string. No library: the package has no runtime dependencies, and stop strings
 * are few and short, so a plain search is fast enough.
 */
export class StopStrings {
  /** The end of the text so far, if it may be the beginning of a stop string. */
  #held = "";
  #passed = "";
  #found = false;

  constructor(private readonly strings: string[]) {}

  /** Whether a stop string occurred. */
  get found(): boolean {
    return this.#found;
  }

  /** All text before the stop string. */
  get text(): string {
    return this.#passed;
  }

  /** Adds text. Returns the text that cannot be part of a stop string. */
  push(text: string): string {
    if (this.#found) return "";
    const all = this.#held + text;
    const starts = this.strings.map((stop) => all.indexOf(stop)).filter((start) => start >= 0);
    this.#found = starts.length > 0;
    const end = this.#found ? Math.min(...starts) : all.length - this.#heldLength(all);
    this.#held = this.#found ? "" : all.slice(end);
    this.#passed += all.slice(0, end);
    return all.slice(0, end);
  }

  /** The text that was held back, once no more text follows. */
  end(): string {
    const rest = this.#held;
    this.#held = "";
    this.#passed += rest;
    return rest;
  }

  /** The length of the longest end of a text that begins a stop string. */
  #heldLength(text: string): number {
    let longest = 0;
    for (const stop of this.strings) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
