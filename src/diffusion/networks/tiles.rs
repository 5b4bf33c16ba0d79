//! Feature maps in tiles: cropped with a margin, reassembled without it.

use crate::Result;
use crate::gpu::Recorder;
use crate::ops::{FeatureMap, Rectangle};
use crate::tensor::Tensor;

/// A tile of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileRegion {
    /// The pixels of the tile, including its margin.
    pub tile: Rectangle,
    /// The pixels that belong to this tile alone.
    pub core: Rectangle,
}

impl TileRegion {
    /// The core, relative to the tile.
    pub(super) fn core_in_tile(&self) -> Rectangle {
        Rectangle { top: self.core.top - self.tile.top, left: self.core.left - self.tile.left, ..self.core }
    }
}

/// Splits `length` into parts of about equal length: multiples of `multiple`, at most `longest` (but at least one
/// multiple).
fn lengths(length: usize, longest: usize, multiple: usize) -> Vec<usize> {
    let units = length.div_ceil(multiple);
    let count = units.div_ceil((longest / multiple).max(1));
    let step = units.div_ceil(count) * multiple;
    (0..length).step_by(step).map(|first| step.min(length - first)).collect()
}

/// The tiles of a map: cores of at most `side` x `side` pixels, with a margin on every side that is not the map's edge.
/// All offsets are multiples of `multiple`.
pub(super) fn tile_regions(
    height: usize,
    width: usize,
    side: usize,
    margin: usize,
    multiple: usize,
) -> Vec<TileRegion> {
    let margin = margin.next_multiple_of(multiple);
    let mut regions = Vec::new();
    let mut top = 0;
    for rows in lengths(height, side, multiple) {
        let mut left = 0;
        for columns in lengths(width, side, multiple) {
            let core = Rectangle { top, left, height: rows, width: columns };
            let (first_row, first_column) = (top.saturating_sub(margin), left.saturating_sub(margin));
            let tile = Rectangle {
                top: first_row,
                left: first_column,
                height: (top + rows + margin).min(height) - first_row,
                width: (left + columns + margin).min(width) - first_column,
            };
            regions.push(TileRegion { tile, core });
            left += columns;
        }
        top += rows;
    }
    regions
}

/// Copies a rectangle of one image's map to (top, left) in another.
pub(super) fn copy(
    recorder: &mut Recorder,
    from: &FeatureMap,
    part: Rectangle,
    to: &FeatureMap,
    (top, left): (usize, usize),
) {
    for row in 0..part.height {
        let first = (part.top + row) * from.width + part.left;
        from.values.slice_rows(first..first + part.width).copy_to(recorder, &to.values, (top + row) * to.width + left);
    }
}

/// Copies a rectangle of one image's map to a new map.
pub(super) fn crop(recorder: &mut Recorder, x: &FeatureMap, part: Rectangle) -> Result<FeatureMap> {
    let pixels = Tensor::temporary(recorder.gpu(), &[part.height * part.width, x.channels()], "tile")?;
    let tile = FeatureMap { height: part.height, width: part.width, values: pixels };
    copy(recorder, x, part, &tile, (0, 0));
    Ok(tile)
}

#[cfg(test)]
mod tests {
    use super::{Rectangle, tile_regions};

    #[test]
    fn cores_cover_a_map_once_and_tiles_have_their_margins() {
        for (height, width, side, margin, multiple) in
            [(16, 16, 5, 2, 1), (7, 9, 100, 3, 1), (64, 24, 20, 5, 8), (9, 1, 1, 1, 1)]
        {
            let mut covered = vec![0; height * width];
            for region in tile_regions(height, width, side, margin, multiple) {
                let Rectangle { top, left, height: rows, width: columns } = region.core;
                assert!(rows <= side.max(multiple) && columns <= side.max(multiple));
                for y in top..top + rows {
                    covered[y * width + left..y * width + left + columns].iter_mut().for_each(|count| *count += 1);
                }
                let tile = region.tile;
                assert!(tile.top == 0 || tile.top + margin <= top);
                assert!(tile.left == 0 || tile.left + margin <= left);
                assert!(tile.top + tile.height == height || tile.top + tile.height >= top + rows + margin);
                assert!(tile.left + tile.width == width || tile.left + tile.width >= left + columns + margin);
                assert!([tile.top, tile.left, top, left].iter().all(|start| start % multiple == 0));
            }
            assert!(covered.iter().all(|count| *count == 1));
        }
    }
}
