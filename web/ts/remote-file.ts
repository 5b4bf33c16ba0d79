// A file on a server, read in ranges. Sequential reads share one response. For the worker.

import { MgmError } from "./errors.js";
import { backOff, chunksOf, explain, isTransient, MAX_TRIES, request } from "./http.js";

/** A gap of at most this many bytes between two reads is read and skipped. */
const MAX_SKIP = 256 << 10;

/** After this many bytes without a gap, a read opens a stream to the end of the file. Headers are shorter. */
const STREAM_AFTER = 256 << 10;

/** Bytes that arrive in order. */
interface Stream {
  chunks: AsyncGenerator<Uint8Array<ArrayBuffer>>;
  /** Offset of the first byte of `rest`. */
  position: number;
  /** What has arrived and was not asked for yet. */
  rest: Uint8Array<ArrayBuffer>;
  /** Offset after its last byte. */
  end: number;
}

export class RemoteFile {
  readonly size: number;
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #signal: AbortSignal;
  #stream: Stream | undefined;
  /** Where the last read ended. */
  #end = 0;
  /** Bytes that were read up to there without a gap. */
  #run = 0;
  /** Why a read failed. The core's error has only the message. */
  failure: unknown;

  constructor(url: string, size: number, headers: Record<string, string>, signal: AbortSignal) {
    this.#url = url;
    this.size = size;
    this.#headers = headers;
    this.#signal = signal;
  }

  /** Returns `length` bytes. Reconnects after failures. */
  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(length);
    let done = 0;
    for (let failures = 0; done < length; ) {
      try {
        const stream = (this.#stream = await this.#streamAt(offset + done, length - done));
        while (done < length && stream.position < stream.end) {
          if (stream.rest.length === 0) {
            const { value, done: ended } = await stream.chunks.next();
            if (ended) throw new MgmError("network", `${this.#url} ends after ${offset + done} of ${this.size} bytes`);
            stream.rest = value;
          }
          const skip = Math.min(offset + done - stream.position, stream.rest.length);
          const taken = Math.min(stream.rest.length - skip, length - done);
          bytes.set(stream.rest.subarray(skip, skip + taken), done);
          stream.rest = stream.rest.subarray(skip + taken);
          stream.position += skip + taken;
          done += taken;
          if (taken > 0) failures = 0;
        }
      } catch (error) {
        this.#close();
        this.#signal.throwIfAborted();
        if (!isTransient(error) || ++failures >= MAX_TRIES) throw (this.failure = await explain(this.#url, error));
        await backOff(failures, error, this.#signal);
      }
    }
    this.#run = offset === this.#end ? this.#run + length : length;
    this.#end = offset + length;
    return bytes;
  }

  /** The open stream if `offset` comes soon in it, or else a new one: of these bytes, or to the end where reads are sequential. */
  async #streamAt(offset: number, length: number): Promise<Stream> {
    const open = this.#stream;
    const isSoon = open && offset >= open.position && offset - open.position <= Math.max(MAX_SKIP, open.rest.length);
    if (isSoon && offset < open.end) return open;
    this.#close();
    const last = offset === this.#end && this.#run >= STREAM_AFTER ? this.size : offset + length;
    const headers = { ...this.#headers, Range: `bytes=${offset}-${last - 1}` };
    const response = await request(this.#url, { headers, signal: this.#signal });
    if (response.status !== 206) {
      await response.body?.cancel();
      throw new MgmError("http", `${this.#url}: the server does not send parts of files (range requests)`);
    }
    return { chunks: chunksOf(response), position: offset, rest: new Uint8Array(0), end: last };
  }

  #close(): void {
    void this.#stream?.chunks.return(undefined).catch(() => undefined);
    this.#stream = undefined;
  }

  /** Ends the connection. */
  close(): void {
    this.#close();
  }
}
