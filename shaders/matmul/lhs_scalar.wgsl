// Reader of x: rows of f32 of any length, zeros past the end, and the gain of the norm before the product.
@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(6) var<storage, read> gain: array<f32>;

// The start of a row, and the part of an index that is the same for all rows.
alias LhsRow = u32;
alias LhsColumn = u32;

struct LhsPair {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn lhs_row_at(row: u32) -> LhsRow {
    return row * params.k;
}

fn lhs_column_at(k4: u32) -> LhsColumn {
    return k4;
}

fn lhs4(lhs_row: LhsRow, step: LhsColumn) -> vec4<f32> {
    let last = params.k - 1u;
    let i = vec4(4u * step) + vec4(0u, 1u, 2u, 3u);
    let j = min(i, vec4(last));
    let value = vec4(input[lhs_row + j.x], input[lhs_row + j.y], input[lhs_row + j.z], input[lhs_row + j.w]);
    return select(vec4(0.0), value, i <= vec4(last));
}

// lhs4 of k4 and of the four after it, both within the row.
fn lhs_pair(lhs_row: LhsRow, k4: u32) -> LhsPair {
    return LhsPair(lhs4(lhs_row, k4), lhs4(lhs_row, k4 + 1u));
}

// Values past the end are multiplied by zero.
fn gain4(k4: u32, k: u32) -> vec4<f32> {
    let j = min(vec4(4u * k4) + vec4(0u, 1u, 2u, 3u), vec4(k - 1u));
    return vec4(gain[j.x], gain[j.y], gain[j.z], gain[j.w]);
}
