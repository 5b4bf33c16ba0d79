//! Orders of a matrix's rows.

/// The order of a matrix's rows, in a file or as requested by a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Rows 0, 1, 2, ...
    Plain,
    /// RoPE pairs interleaved: within each head of `n` rows the order is 0, n/2, 1, n/2 + 1, ..., so that the two rows
    /// that RoPE rotates together are neighbours. Where only the first rows of a head are rotated, the others follow in
    /// their own order. llama.cpp stores queries and keys of Llama models this way (`NORM`); `Plain` is its `NEOX`.
    RopeInterleaved {
        /// Heads that the rows divide into.
        heads: usize,
        /// Rows at the end of each head that are not rotated.
        fixed: usize,
    },
    /// The matrix is stored transposed, column after column.
    Transposed,
}

impl RowOrder {
    /// The stored position of row `row` of `rows`.
    pub(super) fn stored(self, row: usize, rows: usize) -> usize {
        match self {
            // A transposed matrix has no stored rows; it is read as a whole.
            Self::Plain | Self::Transposed => row,
            Self::RopeInterleaved { heads, fixed } => {
                let head_rows = (rows / heads.max(1)).max(1);
                let half = (head_rows.saturating_sub(fixed) / 2).max(1);
                let (head, within) = (row / head_rows, row % head_rows);
                let rotated = 2 * (within % half) + within / half;
                head * head_rows + if within < 2 * half { rotated } else { within }
            }
        }
    }

    /// The row at stored position `position` of `rows`: the inverse of [`Self::stored`].
    pub(crate) fn row_at(self, position: usize, rows: usize) -> usize {
        match self {
            Self::Plain | Self::Transposed => position,
            Self::RopeInterleaved { heads, fixed } => {
                let head_rows = (rows / heads.max(1)).max(1);
                let half = (head_rows.saturating_sub(fixed) / 2).max(1);
                let (head, within) = (position / head_rows, position % head_rows);
                let rotated = within % 2 * half + within / 2;
                head * head_rows + if within < 2 * half { rotated } else { within }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_pairs_the_halves_of_each_head() {
        let order = RowOrder::RopeInterleaved { heads: 2, fixed: 0 };
        let rows: Vec<usize> = (0..12).map(|position| order.row_at(position, 12)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert!((0..12).all(|row| order.row_at(order.stored(row, 12), 12) == row));
        let order = RowOrder::RopeInterleaved { heads: 2, fixed: 2 };
        let rows: Vec<usize> = (0..12).map(|position| order.row_at(position, 12)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
        assert!((0..12).all(|row| order.row_at(order.stored(row, 12), 12) == row));
    }
}
