"use client";

import { Mgm, MgmError, type ModelSource, type Progress } from "mgm-webgpu";
import { useEffect, useState } from "react";

/** The message and the code of an error. */
export const describe = (error: unknown): string =>
  error instanceof MgmError ? `${error.message} (${error.code})` : String(error);

/** Loads a model while the component is mounted. */
export function useModel(source: ModelSource) {
  const [mgm, setMgm] = useState<Mgm>();
  const [progress, setProgress] = useState<Progress>();
  const [error, setError] = useState<Error>();
  useEffect(() => {
    const controller = new AbortController();
    let loaded: Mgm | undefined;
    Mgm.load(source, { signal: controller.signal, onProgress: setProgress }).then(
      (mgm) => {
        loaded = mgm;
        if (controller.signal.aborted) mgm.dispose();
        else setMgm(mgm);
      },
      (error: Error) => {
        if (!controller.signal.aborted) setError(error);
      },
    );
    return () => {
      controller.abort();
      loaded?.dispose();
      setMgm(undefined);
    };
  }, [source]);
  return { mgm, progress, error };
}
