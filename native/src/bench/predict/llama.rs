//! The dispatches of llama.cpp's Vulkan backend for a LLaMA in Q4_0, for the same performance model.
//!
//! They are counted by reading llama.cpp as of the crate llama-cpp-sys-2 0.1.161, whose shaders `make isa LLAMA=1`
//! compiles: the graph in `src/models/llama.cpp`, and in `ggml-vulkan.cpp` what is fused (norm with its weight, RoPE
//! with the store of K, products of one row with the residual), the choice of kernels and tiles, split-K, and where
//! barriers are: not between products of the same x.

use mgm::weights::config::LanguageConfig;

use super::counts::Table;
use super::devices::Device;
use super::model::Work;
use super::work::Part;

/// Bytes of a weight in Q4_0, and in Q6_K, which quantised files have for the output.
const Q4_0: f64 = 18.0 / 32.0;
const Q6_K: f64 = 210.0 / 256.0;

struct Graph<'a> {
    device: &'a Device,
    table: &'a Table,
    config: &'a LanguageConfig,
    works: Vec<Work>,
}

/// Tokens of a batch, unless `--ubatch-size` says otherwise.
const BATCH: usize = 512;

/// A prompt of `tokens` in batches, and the token after them.
pub fn parts(device: &Device, table: &Table, config: &LanguageConfig, tokens: usize) -> Vec<Part> {
    let mut prefill = Graph { device, table, config, works: Vec::new() };
    for first in (0..tokens).step_by(BATCH) {
        prefill.layers(BATCH.min(tokens - first), first);
    }
    prefill.output();
    let mut token = Graph { device, table, config, works: Vec::new() };
    token.layers(1, tokens);
    token.output();
    let part = |name, units, graph: Graph<'_>| Part { name, units, works: graph.works };
    vec![part("prefill", tokens, prefill), part("token", 1, token)]
}

impl Graph<'_> {
    /// The first of these kernels that the device has and does not emulate.
    fn kernel(&self, names: &[&str]) -> Option<String> {
        let native =
            |name: &&&str| self.table.find(name).is_some_and(|(counts, own)| own && counts.multiply_adds > 0.05);
        names.iter().find(native).map(|name| (*name).to_owned())
    }

    /// A kernel that reads and writes `values` in f32 and computes little.
    fn elementwise(&mut self, values: usize, waits: bool) {
        let (bytes, workgroups) = (4.0 * values as f64, values.div_ceil(256) as f64);
        self.works.push(Work { kernel: None, bytes, flops: 0.0, workgroups, invocations: 256.0, waits });
    }

    /// y [m, n] = x [m, k] W^T.
    fn product(&mut self, m: usize, n: usize, k: usize, bytes_of_a_weight: f64, waits: bool) {
        let bytes = bytes_of_a_weight * (n * k) as f64 + 4.0 * (m * (k + n)) as f64;
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        if m == 1 {
            let kernel = self.kernel(&[if bytes_of_a_weight == Q4_0 { "mv_q4_0" } else { "mv_q6_k" }, "mv_q4_0"]);
            let invocations =
                kernel.as_ref().and_then(|name| self.table.find(name)).map_or(32.0, |(row, _)| row.subgroup);
            self.works.push(Work { kernel, bytes, flops, workgroups: n.div_ceil(2) as f64, invocations, waits });
            return;
        }
        let kernel = self.kernel(&["mm_q4_0_matrices_l", "mmq_q4_0_m", "mm_q4_0_fp16_m", "mm_q4_0_fp32_m"]);
        let large = kernel.as_ref().is_some_and(|name| name.ends_with("_l"));
        if kernel.as_ref().is_some_and(|name| name.starts_with("mmq")) && waits {
            // x to bytes, once for all products of it.
            self.elementwise(m * k * 5 / 4, true);
        }
        let (tile, invocations) = if large { (128, 256.0) } else { (64, 128.0) };
        let tiles = m.div_ceil(tile) * n.div_ceil(tile);
        let cores = self.device.cores as usize;
        let split = match tiles {
            _ if k < 2048 => 1,
            _ if 2 * tiles <= cores => (cores / tiles).min(8),
            _ if 3 * tiles <= 2 * cores => 3,
            _ => 1,
        };
        self.works.push(Work { kernel, bytes, flops, workgroups: (tiles * split) as f64, invocations, waits });
        if split > 1 {
            self.elementwise(m * n * (split + 1), true);
        }
    }

    /// Attention of `rows` after `position` others, keys and values in f16.
    fn attention(&mut self, rows: usize, position: usize) {
        let LanguageConfig { num_heads: heads, num_kv_heads: kv_heads, head_dim, .. } = *self.config;
        let keys = position as f64 + (rows as f64 + 1.0) / 2.0;
        let flops = 4.0 * rows as f64 * keys * (heads * head_dim) as f64;
        let bytes = 4.0 * ((position + rows) * kv_heads * head_dim) as f64 + 8.0 * (rows * heads * head_dim) as f64;
        let subgroup = self.table.find("fa_fp32_d128_prefill").map_or(32.0, |(row, _)| row.subgroup);
        let (part, tiles, invocations) = match rows {
            1 => ("decode", 1, 128.0),
            _ => ("prefill", rows.div_ceil(16), 4.0 * subgroup),
        };
        let kernel = self.kernel(&[&format!("fa_fp16_d128_{part}"), &format!("fa_fp32_d128_{part}")]);
        let split = (2 * self.device.cores as usize / (tiles * heads)).max(1);
        let workgroups = (tiles * heads * split) as f64;
        self.works.push(Work { kernel, bytes, flops, workgroups, invocations, waits: true });
        if split > 1 {
            self.elementwise(rows * heads * head_dim * (split + 1), true);
        }
    }

    fn layers(&mut self, rows: usize, position: usize) {
        let LanguageConfig { hidden_size: hidden, intermediate_size: inner, .. } = *self.config;
        let LanguageConfig { num_heads, num_kv_heads, head_dim, num_layers, .. } = *self.config;
        let (queries, keys) = (num_heads * head_dim, num_kv_heads * head_dim);
        self.elementwise(2 * rows * hidden, true);
        for _ in 0..num_layers {
            self.elementwise(2 * rows * hidden, true);
            self.product(rows, queries, hidden, Q4_0, true);
            self.product(rows, keys, hidden, Q4_0, false);
            self.product(rows, keys, hidden, Q4_0, false);
            // RoPE of Q, of K with its store, and the store of V.
            self.elementwise(2 * rows * queries, true);
            self.elementwise(2 * rows * keys, false);
            self.elementwise(2 * rows * keys, false);
            self.attention(rows, position);
            self.product(rows, hidden, queries, Q4_0, true);
            if rows > 1 {
                self.elementwise(3 * rows * hidden, true);
            }
            self.elementwise(2 * rows * hidden, true);
            self.product(rows, inner, hidden, Q4_0, true);
            self.product(rows, inner, hidden, Q4_0, false);
            self.elementwise(3 * rows * inner, true);
            self.product(rows, hidden, inner, Q4_0, true);
            if rows > 1 {
                self.elementwise(3 * rows * hidden, true);
            }
        }
    }

    /// Logits of the last row.
    fn output(&mut self) {
        let LanguageConfig { hidden_size: hidden, vocab_size, .. } = *self.config;
        self.elementwise(2 * hidden, true);
        self.product(1, vocab_size, hidden, Q6_K, true);
    }
}
