// A file on a server, read in ranges. Sequential reads share one response. For the worker.

import { MgmError } from "./errors.js";
import { chunksOf, LONG_PATIENCE, request, Retries, StatusError } from "./http.js";

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
  /** Where the last response came from, if it was redirected to another origin: saves a redirect until that address expires. */
  #location: string | undefined;
  /** A stream to the end of the file that no read uses now. */
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

  /** Returns `length` bytes. Reconnects after failures. Reads may run at the same time. */
  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(length);
    const isSequential = offset === this.#end && this.#run >= STREAM_AFTER;
    this.#run = offset === this.#end ? this.#run + length : length;
    this.#end = offset + length;
    let stream = this.#takeStream(offset);
    let done = 0;
    const retries = new Retries(this.#url, this.#signal, LONG_PATIENCE);
    while (done < length) {
      try {
        stream ??= await this.#open(offset + done, isSequential ? this.size : offset + length);
        while (done < length) {
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
          if (taken > 0) retries.reset();
        }
      } catch (error) {
        if (stream) end(stream);
        stream = undefined;
        try {
          await retries.after(error);
        } catch (last) {
          throw (this.failure = last);
        }
      }
    }
    if (stream && stream.position < stream.end) {
      this.close();
      this.#stream = stream;
    } else if (stream) end(stream);
    return bytes;
  }

  /** The open stream, if `offset` comes soon in it. */
  #takeStream(offset: number): Stream | undefined {
    const stream = this.#stream;
    if (!stream || offset < stream.position || offset - stream.position > Math.max(MAX_SKIP, stream.rest.length)) return undefined;
    this.#stream = undefined;
    return stream;
  }

  /** Requests the bytes from `offset` to `end`. */
  async #open(offset: number, end: number): Promise<Stream> {
    const Range = `bytes=${offset}-${end - 1}`;
    const direct = this.#location;
    try {
      // The token is for the first address only.
      const headers = direct === undefined ? { ...this.#headers, Range } : { Range };
      const response = await request(direct ?? this.#url, { headers, signal: this.#signal, cache: "no-store" });
      if (response.status !== 206) {
        await response.body?.cancel();
        throw new MgmError("http", `${this.#url}: the server does not send parts of files (range requests)`);
      }
      if (direct === undefined && new URL(response.url).origin !== new URL(this.#url).origin) this.#location = response.url;
      return { chunks: chunksOf(response), position: offset, rest: new Uint8Array(0), end };
    } catch (error) {
      if (direct === undefined || !(error instanceof StatusError)) throw error;
      this.#location = undefined;
      return this.#open(offset, end);
    }
  }

  /** Ends the connection. */
  close(): void {
    if (this.#stream) end(this.#stream);
    this.#stream = undefined;
  }
}

function end(stream: Stream): void {
  void stream.chunks.return(undefined).catch(() => undefined);
}
