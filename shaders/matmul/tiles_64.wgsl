// Tiles of TILE_M rows of x by 64 rows of W in workgroup memory, for 128 invocations that compute 8 x COLUMNS outputs
// each: rows of x from 8 (invocation / LANES_N), rows of W from COLUMNS (invocation % LANES_N). COLUMNS, 4 or 8, is a
// constant.
const COLUMNS4: u32 = COLUMNS / 4u;
const TILE_M: u32 = 64u * COLUMNS4;
const TILE_N: u32 = 64u;
const LANES_M: u32 = 8u * COLUMNS4;
const LANES_N: u32 = 16u / COLUMNS4;

// Which place in a tile a row has: rows that invocations next to each other read at a time are next to each other.
fn lhs_slot(row: u32) -> u32 {
    return (row & 7u) * LANES_M + (row >> 3u);
}

fn weight_slot(row: u32) -> u32 {
    return row % COLUMNS * LANES_N + row / COLUMNS;
}
