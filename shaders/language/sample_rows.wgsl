// Sampling parameters of each row: `rows` [rows], and masks [masks, words] with a bit for each token, the lowest first,
// words = vocab / 32 rounded up. Tokens whose bit is 0 take no part. Where no row has a mask, anything can be bound.

struct Row {
    top_k: u32,               // 0: all
    top_p: f32,               // 1: all
    inverse_temperature: f32, // 0: argmax
    min_p: f32,               // temperature * ln(min_p); LOWEST: all
    draw: f32,                // uniform in [0, 1)
    mask: u32,                // 1 + its mask; 0: none
    padding: vec2<u32>,
}

@group(0) @binding(PARAMS - 2u) var<storage, read> rows: array<Row>;
@group(0) @binding(PARAMS - 1u) var<storage, read> masks: array<u32>;
@group(0) @binding(PARAMS) var<uniform> params: Params;

// The number of a row among those with a state of their own.
fn drawn_row(row: u32) -> u32 {
    return row;
}

fn draws(row: u32) -> bool {
    return rows[row].inverse_temperature > 0.0;
}

// Whether the row needs a histogram of sample_split.wgsl.
fn has_histogram(row: u32, histogram: u32) -> bool {
    let by_count = histogram < 4u;
    let cuts = select(top_p(row) < 1.0, top_k(row) > 0u && top_k(row) < params.vocab, by_count);
    return draws(row) && cuts;
}

fn top_k(row: u32) -> u32 {
    return rows[row].top_k;
}

fn top_p(row: u32) -> f32 {
    return rows[row].top_p;
}

fn inverse_temperature(row: u32) -> f32 {
    return rows[row].inverse_temperature;
}

fn draw(row: u32) -> f32 {
    return rows[row].draw;
}

// The lowest key of a probability of at least min_p times the largest.
fn lowest_of_min_p(row: u32, maximum: f32) -> u32 {
    let offset = rows[row].min_p;
    return select(key(max(maximum + offset, LOWEST)), 0u, offset <= LOWEST);
}

fn is_allowed(row: u32, token: u32) -> bool {
    let mask = rows[row].mask;
    if mask == 0u {
        return true;
    }
    let word = masks[(mask - 1u) * ((params.vocab + 31u) / 32u) + (token >> 5u)];
    return ((word >> (token & 31u)) & 1u) == 1u;
}
