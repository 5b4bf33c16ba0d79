import { defineConfig } from "vite";

export default defineConfig({
  worker: { format: "es" },
  // The development server moves prebundled modules away from their worker and wasm files.
  optimizeDeps: { exclude: ["mgm-webgpu"] },
});
