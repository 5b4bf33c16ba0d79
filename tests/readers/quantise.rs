//! The packing of q8 and q4 against blocks that the gguf package made (tests/reference/make_quantise.py): integers,
//! scales and minimums bit for bit, and what they stand for.

use mgm::tensor::{GROUP_SIZE, Packed, Precision, dequantize, pack_rows};
use safetensors::SafeTensors;

const FIXTURE: &[u8] = include_bytes!("../data/ops/quantise.safetensors");

/// GGUF blocks taken apart into this project's layout: q8_0 is a scale and 32 bytes, q4_1 a scale, a minimum and 16
/// bytes with value j in the low half of byte j and value j + 16 in the high half.
fn repack(precision: Precision, blocks: &[u8]) -> Packed {
    let mut packed = Packed::default();
    let (head, size) = if precision == Precision::Q8 { (2, 34) } else { (4, 20) };
    assert_eq!(blocks.len() % size, 0);
    for block in blocks.chunks_exact(size) {
        let (scales, quants) = block.split_at(head);
        packed.scales.extend_from_slice(scales);
        if precision == Precision::Q8 {
            packed.data.extend_from_slice(quants);
        } else {
            let value = |j: usize| if j < GROUP_SIZE / 2 { quants[j] & 15 } else { quants[j - GROUP_SIZE / 2] >> 4 };
            packed.data.extend((0..GROUP_SIZE / 2).map(|pair| value(2 * pair) | value(2 * pair + 1) << 4));
        }
    }
    packed
}

#[test]
fn q8_and_q4_pack_as_gguf_does() {
    let file = SafeTensors::deserialize(FIXTURE).expect("the fixture");
    let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(file.tensor(name).expect(name).data()) };
    let mut groups = 0;
    for name in file.names() {
        let Some(case) = name.strip_suffix(".f32").filter(|case| !case.contains('.')) else { continue };
        let rows = floats(name);
        let columns = file.tensor(name).expect("listed").shape()[1];
        for (precision, label) in [(Precision::Q8, "q8_0"), (Precision::Q4, "q4_1")] {
            let expected = repack(precision, file.tensor(&format!("{case}.{label}")).expect("blocks").data());
            let packed = pack_rows(precision, columns, &rows);
            let first_difference = |a: &[u8], b: &[u8]| a.iter().zip(b).position(|(a, b)| a != b);
            assert_eq!(packed.scales.len(), expected.scales.len(), "{case} {label}");
            assert_eq!(packed.data.len(), expected.data.len(), "{case} {label}");
            // The minimum of zeros of both signs may have either.
            let unsigned_zeros = |scales: &[u8]| -> Vec<u8> {
                scales
                    .chunks_exact(2)
                    .flat_map(|half| if half == [0, 0x80] { [0, 0] } else { [half[0], half[1]] })
                    .collect()
            };
            let scales = [&packed.scales, &expected.scales].map(|scales| unsigned_zeros(scales));
            assert_eq!(first_difference(&scales[0], &scales[1]), None, "{case} {label}: byte of the scales");
            assert_eq!(first_difference(&packed.data, &expected.data), None, "{case} {label}: byte of the weights");
            // minimum + scale q, rounded once or twice.
            let values = floats(&format!("{case}.{label}.f32"));
            for (index, (value, expected)) in dequantize(precision, columns, &packed).iter().zip(&values).enumerate() {
                let largest = rows.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert!(
                    (value - expected).abs() <= largest * 1.2e-7,
                    "{case} {label}: {value} at element {index}, expected {expected}"
                );
            }
            groups += rows.len() / GROUP_SIZE;
        }
    }
    assert!(groups > 500, "{groups} groups only");
    println!("{groups} groups packed as GGUF packs them");
}

#[test]
fn rows_that_do_not_fill_a_group_are_packed_as_if_it_ended_there() {
    let row: Vec<f32> = (0..45).map(|i| (i as f32 - 20.0) * 0.37).collect();
    for precision in [Precision::Q8, Precision::Q4] {
        let whole = pack_rows(precision, 45, &row);
        let [head, tail] = [pack_rows(precision, 32, &row[..32]), pack_rows(precision, 13, &row[32..])];
        assert_eq!(whole.data, [head.data, tail.data].concat());
        assert_eq!(whole.scales, [head.scales, tail.scales].concat());
        // Half a step, and the rounding of the scale to f16 at the group's ends.
        let step = if precision == Precision::Q8 { 8.88 / 127.0 } else { 11.47 / 15.0 };
        for (value, expected) in dequantize(precision, 45, &whole).iter().zip(&row) {
            assert!((value - expected).abs() <= step * 0.57, "{precision}: {value}, expected {expected}");
        }
    }
}
