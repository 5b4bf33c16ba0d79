// Files of the Origin Private File System, open for writing. For the worker: pages have no such handles, nor their types.

/** Milliseconds to wait for a file that another tab or an ended worker still holds. */
const HOLD_LIMIT = 5_000;

/** Opens a file for writing. */
export async function openAccess(handle: FileSystemFileHandle): Promise<FileSystemSyncAccessHandle> {
  for (const started = performance.now(); ; ) {
    try {
      return await handle.createSyncAccessHandle();
    } catch (error) {
      const held = error instanceof DOMException && error.name === "NoModificationAllowedError";
      if (!held || performance.now() - started > HOLD_LIMIT) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
