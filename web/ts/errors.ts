/**
 * What went wrong, as a name that programs can rely on.
 *
 * From the page's side: `unsupported-browser`, `disposed`. From loading: `offline`, `network`, `cors`, `http`, `checksum`,
 * `quota`, `storage`. From the core: the others; `device-lost` only after recovering from it failed too.
 */
export type MgmErrorCode =
  | "unsupported-browser"
  | "disposed"
  | "internal"
  | "offline"
  | "network"
  | "cors"
  | "http"
  | "checksum"
  | "quota"
  | "storage"
  | "io"
  | "missing-file"
  | "malformed"
  | "missing-tensor"
  | "wrong-shape"
  | "wrong-dtype"
  | "bad-value"
  | "unsupported"
  | "config"
  | "image"
  | "prompt-too-long"
  | "invalid-argument"
  | "no-adapter"
  | "out-of-memory"
  | "device-lost"
  | "gpu"
  | "cancelled";

/** Every error of this package, except that an aborted call throws its signal's reason. */
export class MgmError extends Error {
  override readonly name = "MgmError";

  constructor(
    readonly code: MgmErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The error as what crosses between page and worker. */
export interface WireError {
  code: MgmErrorCode;
  message: string;
}

/** Puts anything that was thrown into that form. */
export function toWire(error: unknown): WireError {
  if (error instanceof Error) {
    const code = (error as { code?: unknown }).code;
    if (typeof code === "string") return { code: code as MgmErrorCode, message: error.message };
    if (error.name === "QuotaExceededError") return { code: "quota", message: error.message };
    return { code: "internal", message: `${error.name}: ${error.message}` };
  }
  return { code: "internal", message: String(error) };
}
