// Tiles of 64 rows of x by 64 rows of W in workgroup memory, for 128 invocations that compute 8 x 4 outputs each: rows
// of x from 8 (invocation / 16), rows of W from 4 (invocation % 16).
const TILE: u32 = 64u;

// Which place in a tile a row has: rows that invocations next to each other read at a time are next to each other.
fn lhs_slot(row: u32) -> u32 {
    return (row & 7u) * 8u + (row >> 3u);
}

fn weight_slot(row: u32) -> u32 {
    return (row & 3u) * 16u + (row >> 2u);
}
