// Options as users type them: names of diffusers, transformers and OpenAI's API are in snake case.

import { MgmError } from "./errors.js";

/**
 * The options under the names in `names`. A name in snake case stands for the same one in camel case.
 * @throws MgmError `invalid-argument` for an option that does not exist, and for one that is given twice with different values.
 */
export function withKnownNames<T extends object>(call: string, options: T, names: readonly string[]): T {
  const result: Record<string, unknown> = {};
  for (const [given, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const name = given.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
    if (!names.includes(name)) throw new MgmError("invalid-argument", `${call} has no option "${given}"; it has ${names.join(", ")}`);
    checkSame(name, result[name], given, value);
    result[name] = value;
  }
  return result as T;
}

/** The value of an option that has two names. */
export function either<T>(name: string, value: T | undefined, otherName: string, other: T | undefined): T | undefined {
  checkSame(name, value, otherName, other);
  return value ?? other;
}

function checkSame(name: string, value: unknown, otherName: string, other: unknown): void {
  if (value !== undefined && other !== undefined && value !== other) {
    throw new MgmError("invalid-argument", `${name} and ${otherName} are the same option, with different values: ${String(value)} and ${String(other)}`);
  }
}
