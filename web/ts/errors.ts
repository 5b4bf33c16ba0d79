/**
 * The kind of an error, for programs.
 *
 * - The browser: `unsupported-browser`, `no-adapter`.
 * - The call: `disposed`, `invalid-argument`, `unsupported`, `prompt-too-long`, `image`. `needs-setting`: the files
 *   do not determine a setting, such as the conversation template.
 * - Downloads, including images: `offline`, `network`, `cors`, `http`, `checksum`, `quota`, `storage`.
 * - The model's files: `io`, `missing-file`, `malformed`, `missing-tensor`, `wrong-shape`, `wrong-dtype`, `bad-value` (NaN or infinity),
 *   `config`, `unsupported`.
 * - The GPU: `out-of-memory`, `gpu`, and `device-lost` if recovery failed too.
 * - A bug in this package: `internal`.
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
  | "needs-setting"
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
    /** The kind of error, for programs. */
    readonly code: MgmErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}

/** An error as it crosses between page and worker. */
export interface WireError {
  code: MgmErrorCode;
  message: string;
}

/** Converts anything that was thrown. */
export function toWire(error: unknown): WireError {
  if (error instanceof Error) {
    const code = (error as { code?: unknown }).code;
    if (typeof code === "string") return { code: code as MgmErrorCode, message: error.message };
    if (error.name === "QuotaExceededError") return { code: "quota", message: error.message };
    return { code: "internal", message: `${error.name}: ${error.message}` };
  }
  return { code: "internal", message: String(error) };
}

/** Converts back. */
export const fromWire = ({ code, message }: WireError): MgmError => new MgmError(code, message);
