import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  // The development server moves prebundled modules away from their worker and wasm files.
  optimizeDeps: { exclude: ["mgm-webgpu"] },
});
