//! What a GPU's compiler makes of each kernel: the rows of `isa/DEVICE.tsv`. KERNELS.md, "Machine code", explains the
//! columns.

use std::collections::BTreeMap;

/// One kernel on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    pub subgroup: f64,
    /// Multiply-adds an instruction in the heaviest inner loop.
    pub multiply_adds: f64,
    /// The share of multiply-adds, dots and matrix operations among the vector ALU's instructions of that loop.
    pub alu_share: f64,
    /// Bytes that an invocation loads from memory in an iteration of that loop.
    pub load_bytes: f64,
    /// In the driver's unit.
    pub occupancy: f64,
    /// Instructions of the whole kernel, each once.
    pub instructions: f64,
}

/// A device's kernels, by name.
#[derive(Debug)]
pub struct Table(BTreeMap<&'static str, Counts>);

impl Table {
    /// Reads the text of a table. Kernels that the compiler refused are left out.
    pub fn parse(text: &'static str) -> Self {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let columns: Vec<_> = lines.next().unwrap_or_default().split('\t').collect();
        let rows = lines.filter_map(|line| {
            let cells: Vec<_> = line.split('\t').collect();
            let cell = |name: &str| {
                let index = columns.iter().position(|column| *column == name)?;
                cells.get(index).copied()
            };
            let number = |name| cell(name)?.parse::<f64>().ok();
            let name = cell("kernel")?;
            let whole = number("fma/instr")?;
            let counts = Counts {
                subgroup: number("subgroup")?,
                // Attention has a loop for scores and one for values, with as many multiply-adds in all.
                multiply_adds: match name.starts_with("attention") {
                    true => mean_of_loops(cell("loops")?).unwrap_or(whole),
                    false => whole,
                },
                alu_share: cell("fma/alu").and_then(|cell| cell.strip_suffix('%')?.parse().ok()).unwrap_or(0.0) / 100.0,
                load_bytes: cell("load").map_or(0.0, bytes),
                occupancy: number("occupancy")?,
                instructions: number("instr")?,
            };
            Some((name, counts))
        });
        Self(rows.collect())
    }

    /// The counts of a kernel, and whether they are its own. Otherwise they are those of the specialisation of the same
    /// entry point whose name has most words in common.
    pub fn find(&self, name: &str) -> Option<(&Counts, bool)> {
        if let Some(counts) = self.0.get(name) {
            return Some((counts, true));
        }
        let words: Vec<_> = name.split('.').collect();
        let related = self.0.iter().filter(|(other, _)| other.split('.').next() == words.first().copied());
        let shared = |other: &str| {
            let others: Vec<_> = other.split('.').collect();
            let common = others.iter().filter(|word| words.contains(word)).count() as isize;
            2 * common - others.len() as isize
        };
        Some((related.max_by_key(|(other, _)| shared(other))?.1, false))
    }
}

/// Multiply-adds an instruction over loops such as `183/64 267/64` with equal numbers of multiply-adds in all.
fn mean_of_loops(loops: &str) -> Option<f64> {
    let mut instructions = Vec::new();
    for one in loops.split_whitespace() {
        let (count, multiply_adds) = one.split_once('/')?;
        instructions.push(count.parse::<f64>().ok()? / multiply_adds.parse::<f64>().ok()?);
    }
    Some(instructions.len() as f64 / instructions.iter().sum::<f64>()).filter(|mean| mean.is_finite())
}

/// The bytes of accesses such as `13x16 2x4`.
fn bytes(accesses: &str) -> f64 {
    let product = |access: &str| {
        let (count, width) = access.split_once('x')?;
        Some(count.parse::<f64>().ok()? * width.parse::<f64>().ok()?)
    };
    accesses.split_whitespace().filter_map(product).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::predict::devices::DEVICES;

    const TEXT: &str = "# A GPU\nkernel\tsubgroup\tfma/instr\tfma/alu\tloops\tload\tshared\tregs\toccupancy\tspills\tscratch\tinstr\tcycles\n\
        attention_decode.d64\t32\t0.35\t40%\t183/64 267/64\t16x4 1x8\t\t48\t40\t0\t0\t1769\t9\n\
        matvec.q4\t32\t0.15\t16%\t216/32\t12x4\t\t32\t48\t0\t0\t445\t9\n\
        matvec.q4.rope\t32\t0.25\t16%\t128/32\t12x4\t\t32\t48\t0\t0\t445\t9\n\
        matmul\t\trefused: a fault\n";

    #[test]
    fn rows_are_read_and_the_nearest_is_found() {
        let table = Table::parse(TEXT);
        let (counts, own) = table.find("attention_decode.d64").expect("a row");
        assert!(own && counts.load_bytes == 72.0 && counts.occupancy == 40.0 && counts.instructions == 1769.0);
        // (183 + 267) / 128 instructions a multiply-add.
        assert!((counts.multiply_adds - 128.0 / 450.0).abs() < 1e-12);
        let (near, own) = table.find("matvec.q4.norm").expect("a similar kernel");
        assert!(!own && near.multiply_adds == 0.15);
        assert_eq!(table.find("matmul"), None);
    }

    #[test]
    fn every_device_has_its_products() {
        for device in &DEVICES {
            let [ours, theirs] = device.tables.map(Table::parse);
            for name in ["matmul.q4.c8", "matvec_rows.q4.l8.o4.r1.norm.w128", "attention_tiled.kv16.d128.r16.causal"] {
                assert!(ours.find(name).is_some_and(|(counts, own)| own && counts.multiply_adds > 0.0), "{name}");
            }
            assert!(theirs.find("mv_q4_0").is_some_and(|(_, own)| own), "{}", device.name);
        }
    }
}
