// Reader of x: rows of f32 whose length is a multiple of 4, and the gain of the norm before the product.
@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;

// The start of a row, and the part of an index that is the same for all rows.
alias LhsRow = u32;
alias LhsColumn = u32;

struct LhsPair {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn lhs_row_at(row: u32) -> LhsRow {
    return row * (params.k >> 2u);
}

fn lhs_column_at(k4: u32) -> LhsColumn {
    return k4;
}

// Elements 4 k4 .. 4 k4 + 3 of a row.
fn lhs4(lhs_row: LhsRow, step: LhsColumn) -> vec4<f32> {
    return input[lhs_row + step];
}

// lhs4 of k4 and of the four after it, both within the row.
fn lhs_pair(lhs_row: LhsRow, k4: u32) -> LhsPair {
    return LhsPair(lhs4(lhs_row, k4), lhs4(lhs_row, k4 + 1u));
}

fn gain4(k4: u32, k: u32) -> vec4<f32> {
    return gain[k4];
}
