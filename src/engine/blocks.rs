//! Block allocator and prefix cache of the paged KV cache: reference counts of blocks, and the prefix that each block
//! holds. Nothing here touches the device: a block is a number, and the caller writes its rows.
//!
//! A sequence has a [`BlockTable`]. Its full blocks are registered under the [`PrefixKey`] of all positions up to their
//! end, so that another sequence that begins with the same positions finds them. Blocks of finished sequences stay
//! cached until their memory is needed. The least recently used block is evicted first, but never before the blocks
//! that continue it.

use std::collections::{BTreeSet, HashMap};

use super::digest::{CachedPosition, PrefixKey, Salt};

pub use crate::ops::BLOCK_ROWS;

/// The number of a block.
pub type BlockId = u32;

/// The blocks of a sequence, in order.
#[derive(Debug)]
pub struct BlockTable {
    salt: Salt,
    blocks: Vec<BlockId>,
    /// Blocks at the start whose content is registered.
    registered: usize,
    /// The key of the registered blocks.
    key: PrefixKey,
}

impl BlockTable {
    /// No blocks. `salt` separates caches that must not be shared.
    pub fn new(salt: Salt) -> Self {
        let key = PrefixKey::root(&salt);
        Self { salt, blocks: Vec::new(), registered: 0, key }
    }

    /// The blocks: row i of the sequence is row i % [`BLOCK_ROWS`] of block i / [`BLOCK_ROWS`].
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Rows that the blocks can hold.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_ROWS
    }

    /// Blocks at the start that others can find.
    pub fn registered(&self) -> usize {
        self.registered
    }

    /// The row of the cache that holds row `row` of the sequence, if it has one.
    pub fn slot(&self, row: usize) -> Option<usize> {
        self.blocks.get(row / BLOCK_ROWS).map(|block| *block as usize * BLOCK_ROWS + row % BLOCK_ROWS)
    }
}

/// A copy of the first rows of one block to another, which the caller has to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The source.
    pub from: BlockId,
    /// The destination.
    pub to: BlockId,
    /// Number of rows, from row 0.
    pub rows: usize,
}

/// The prefix of a sequence that was found in the cache.
#[derive(Debug)]
pub struct PrefixHit {
    /// The blocks that hold it.
    pub table: BlockTable,
    /// Its length in rows.
    pub rows: usize,
    /// The copy to record before the last rows are used. The source is intact until the pool hands out blocks again,
    /// provided that the device copies before it executes commands recorded later.
    pub copy: Option<BlockCopy>,
}

#[derive(Debug, Default)]
struct Block {
    /// Number of tables that contain it.
    references: usize,
    cached: Option<Cached>,
    /// When it was last in a table.
    used: u64,
}

/// What a block holds.
#[derive(Debug)]
struct Cached {
    /// The prefix before it.
    parent: PrefixKey,
    /// The prefix up to its end; `None` for a block that is not full.
    key: Option<PrefixKey>,
    positions: Vec<CachedPosition>,
}

/// Blocks that hold the same prefix up to their start.
type Children = Vec<BlockId>;

/// All blocks of a cache.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    /// Full blocks by the prefix up to their end.
    by_key: HashMap<PrefixKey, BlockId>,
    /// Cached blocks by the prefix before them.
    children: HashMap<PrefixKey, Children>,
    /// Cached blocks in no table and without children, least recently used first.
    evictable: BTreeSet<(u64, BlockId)>,
    /// Blocks that are cached and in no table.
    unused: usize,
    clock: u64,
    evicted: u64,
}

impl BlockPool {
    /// `count` free blocks.
    pub fn new(count: usize) -> Self {
        Self {
            blocks: (0..count).map(|_| Block::default()).collect(),
            // The first block is taken first.
            free: (0..count as BlockId).rev().collect(),
            by_key: HashMap::new(),
            children: HashMap::new(),
            evictable: BTreeSet::new(),
            unused: 0,
            clock: 0,
            evicted: 0,
        }
    }

    /// Total number of blocks.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be taken: the free ones, and those that only the prefix cache holds.
    pub fn available(&self) -> usize {
        self.free.len() + self.unused
    }

    /// Blocks that hold a prefix and are in no table.
    pub fn cached(&self) -> usize {
        self.unused
    }

    /// Number of cached blocks that were evicted since the pool was created.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Finds the longest cached prefix of `positions` without the last position, which must be computed for its logits.
    /// Full blocks are shared. Rows of a partly matching block are copied to a new block, if one is available.
    pub fn find_prefix(&mut self, salt: &Salt, positions: &[CachedPosition]) -> PrefixHit {
        let mut table = BlockTable::new(salt.clone());
        let positions = &positions[..positions.len().saturating_sub(1)];
        let mut full = positions.chunks_exact(BLOCK_ROWS);
        for chunk in full.by_ref() {
            let key = table.key.child(salt, chunk);
            let Some(block) = self.by_key.get(&key).copied() else { break };
            // A key is 128 bits of SHA-256. Comparing the positions is cheap and excludes collisions.
            if self.blocks[block as usize].cached.as_ref().is_none_or(|cached| cached.positions != chunk) {
                break;
            }
            self.retain(block);
            table.blocks.push(block);
            (table.registered, table.key) = (table.registered + 1, key);
        }
        let rows = table.capacity();
        let copy = self.copy_partial(&mut table, &positions[rows..]);
        PrefixHit { table, rows: rows + copy.map_or(0, |copy| copy.rows), copy }
    }

    /// Appends a new block for the first rows of the cached block that matches `rest` best. Returns the copy to make.
    fn copy_partial(&mut self, table: &mut BlockTable, rest: &[CachedPosition]) -> Option<BlockCopy> {
        let common = |block: BlockId| {
            let cached = self.blocks[block as usize].cached.as_ref();
            cached.map_or(0, |cached| cached.positions.iter().zip(rest).take_while(|(a, b)| a == b).count())
        };
        let children = self.children.get(&table.key)?;
        let (rows, from) = children.iter().map(|block| (common(*block), *block)).max_by_key(|(rows, _)| *rows)?;
        if rows == 0 {
            return None;
        }
        // Retained, so that `take` does not evict the source.
        self.retain(from);
        let to = self.take();
        self.release_block(from);
        let to = to?;
        table.blocks.push(to);
        Some(BlockCopy { from, to, rows })
    }

    /// Appends blocks to `table` until it has room for `rows` rows. Returns false, and changes nothing, if there are
    /// too few blocks.
    #[must_use]
    pub fn extend(&mut self, table: &mut BlockTable, rows: usize) -> bool {
        let missing = rows.div_ceil(BLOCK_ROWS).saturating_sub(table.blocks.len());
        if missing > self.available() {
            return false;
        }
        table.blocks.extend((0..missing).filter_map(|_| self.take()));
        true
    }

    /// Makes the full blocks of a sequence available to others. `positions`: from the start, those whose rows are
    /// written, or will be by recorded commands. If another sequence registered the same block earlier, the table uses
    /// that one instead of its own.
    pub fn register(&mut self, table: &mut BlockTable, positions: &[CachedPosition]) {
        let full = positions.chunks_exact(BLOCK_ROWS).take(table.blocks.len()).skip(table.registered);
        for chunk in full {
            let key = table.key.child(&table.salt, chunk);
            let own = table.blocks[table.registered];
            match self.by_key.get(&key).copied() {
                Some(block) => {
                    self.retain(block);
                    table.blocks[table.registered] = block;
                    self.release_block(own);
                }
                None => {
                    self.by_key.insert(key, own);
                    self.cache(own, Cached { parent: table.key, key: Some(key), positions: chunk.to_vec() });
                }
            }
            (table.registered, table.key) = (table.registered + 1, key);
        }
    }

    /// A second table for the first `rows` rows of a sequence. Full blocks are shared; rows of a partial block are
    /// copied to a new one. Returns `None`, and changes nothing, if no block is available or the table is shorter than
    /// `rows`.
    pub fn fork(&mut self, table: &BlockTable, rows: usize) -> Option<(BlockTable, Option<BlockCopy>)> {
        let (full, rest) = (rows / BLOCK_ROWS, rows % BLOCK_ROWS);
        let partial = if rest > 0 {
            let from = *table.blocks.get(full)?;
            Some(BlockCopy { from, to: self.take()?, rows: rest })
        } else {
            None
        };
        let mut blocks = table.blocks.get(..full)?.to_vec();
        for block in &blocks {
            self.retain(*block);
        }
        blocks.extend(partial.map(|copy| copy.to));
        // Full blocks that are not registered yet are shared too; either table may register them.
        let registered = table.registered.min(full);
        let key = if registered == table.registered { table.key } else { self.key_before(table, registered) };
        Some((BlockTable { salt: table.salt.clone(), blocks, registered, key }, partial))
    }

    /// The key of a table's first `registered` blocks, fewer than the table has registered.
    fn key_before(&self, table: &BlockTable, registered: usize) -> PrefixKey {
        let cached = self.blocks[table.blocks[registered] as usize].cached.as_ref();
        cached.map_or_else(|| PrefixKey::root(&table.salt), |cached| cached.parent)
    }

    /// Returns the blocks of a finished sequence to the pool. Their rows stay cached until the blocks are needed.
    /// `positions` are those whose rows are written, or will be by recorded commands.
    pub fn release(&mut self, mut table: BlockTable, positions: &[CachedPosition]) {
        self.register(&mut table, positions);
        let (start, end) = (table.registered * BLOCK_ROWS, positions.len().min(table.capacity()));
        if start < end {
            self.register_partial(table.blocks[table.registered], table.key, &positions[start..end]);
        }
        // In reverse, so that a block counts as used after those that continue it. Eviction does not depend on it.
        for block in table.blocks.into_iter().rev() {
            self.release_block(block);
        }
    }

    /// Caches the rows of a block that is not full, unless another has them.
    fn register_partial(&mut self, block: BlockId, parent: PrefixKey, positions: &[CachedPosition]) {
        if self.blocks[block as usize].cached.is_some() || self.blocks[block as usize].references > 1 {
            return;
        }
        let of = |block: &BlockId| self.blocks[*block as usize].cached.as_ref().map(|cached| &cached.positions);
        let siblings = self.children.get(&parent);
        let mut siblings = siblings.into_iter().flatten().filter_map(|block| Some((*block, of(block)?)));
        if siblings.any(|(_, sibling)| sibling.starts_with(positions)) {
            return;
        }
        let shorter = self.children.get(&parent).into_iter().flatten();
        let shorter = shorter.copied().find(|block| {
            let unused = self.blocks[*block as usize].references == 0;
            unused && of(block).is_some_and(|sibling| positions.starts_with(sibling))
        });
        if let Some(shorter) = shorter {
            self.forget(shorter);
            self.free.push(shorter);
        }
        self.cache(block, Cached { parent, key: None, positions: positions.to_vec() });
    }

    /// Drops all prefixes that no table uses.
    pub fn drop_cached(&mut self) {
        while let Some((_, id)) = self.evictable.first().copied() {
            self.forget(id);
            self.free.push(id);
        }
    }

    /// Allocates a block for a table: a free one, or the least recently used cached block that no other continues.
    fn take(&mut self) -> Option<BlockId> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let (_, id) = self.evictable.first().copied()?;
                self.forget(id);
                self.evicted += 1;
                id
            }
        };
        self.blocks[id as usize].references = 1;
        Some(id)
    }

    fn retain(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if block.references == 0 {
            self.unused -= 1;
            self.evictable.remove(&(block.used, id));
        }
        block.references += 1;
    }

    fn release_block(&mut self, id: BlockId) {
        self.clock += 1;
        let block = &mut self.blocks[id as usize];
        block.used = self.clock;
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        if block.cached.is_none() {
            self.free.push(id);
            return;
        }
        self.unused += 1;
        self.update_evictable(id);
    }

    /// Registers the content of a block that is in a table.
    fn cache(&mut self, id: BlockId, cached: Cached) {
        self.children.entry(cached.parent).or_default().push(id);
        if let Some(parent) = self.by_key.get(&cached.parent).copied() {
            self.evictable.remove(&(self.blocks[parent as usize].used, parent));
        }
        self.blocks[id as usize].cached = Some(cached);
    }

    /// Removes an unused block from the cache; it is then in no list.
    fn forget(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        self.evictable.remove(&(block.used, id));
        let Some(cached) = block.cached.take() else { return };
        self.unused -= 1;
        if let Some(key) = cached.key {
            self.by_key.remove(&key);
        }
        if let Some(siblings) = self.children.get_mut(&cached.parent) {
            siblings.retain(|sibling| *sibling != id);
            if siblings.is_empty() {
                self.children.remove(&cached.parent);
            }
        }
        if let Some(parent) = self.by_key.get(&cached.parent).copied() {
            self.update_evictable(parent);
        }
    }

    /// Lists a block as evictable if it is.
    fn update_evictable(&mut self, id: BlockId) {
        let block = &self.blocks[id as usize];
        let Some(cached) = &block.cached else { return };
        let continued = cached.key.is_some_and(|key| self.children.contains_key(&key));
        if block.references == 0 && !continued {
            self.evictable.insert((block.used, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::digest::ImageDigest;
    use super::*;
    use crate::image::Image;

    /// The pool with what a device would hold: for each row of each block the prefix that its keys stand for.
    struct Model {
        pool: BlockPool,
        rows: Vec<Option<Vec<CachedPosition>>>,
        sequences: Vec<Sequence>,
        salts: Vec<Option<Vec<u8>>>,
        random: u64,
        hits: usize,
        copies: usize,
    }

    struct Sequence {
        salt: Salt,
        table: BlockTable,
        /// Positions whose rows are written.
        positions: Vec<CachedPosition>,
    }

    impl Model {
        fn new(blocks: usize) -> Self {
            Self {
                pool: BlockPool::new(blocks),
                rows: vec![None; blocks * BLOCK_ROWS],
                salts: vec![None; blocks * BLOCK_ROWS],
                sequences: Vec::new(),
                random: 7,
                hits: 0,
                copies: 0,
            }
        }

        fn below(&mut self, limit: usize) -> usize {
            // SplitMix64.
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as usize % limit
        }

        /// Few tokens, so that prefixes meet; images whose rows differ only in the digest.
        fn position(&mut self, index: usize) -> CachedPosition {
            let image = Image::new(1, 1, vec![0, 0, self.below(2) as u8]).expect("an image");
            match index {
                20..30 => CachedPosition::Visual { image: ImageDigest::new(&image, "square"), row: index as u32 - 20 },
                _ if self.below(24) == 0 => CachedPosition::Text(1),
                _ => CachedPosition::Text(0),
            }
        }

        fn write(&mut self, sequence: usize, from: usize) {
            let sequence = &self.sequences[sequence];
            for row in from..sequence.positions.len() {
                let slot = sequence.table.slot(row).expect("a slot");
                self.rows[slot] = Some(sequence.positions[..=row].to_vec());
                self.salts[slot] = Some(sequence.salt.0.clone());
            }
        }

        fn copy(&mut self, copy: Option<BlockCopy>) {
            let Some(BlockCopy { from, to, rows }) = copy else { return };
            self.copies += 1;
            for row in 0..rows {
                let (from, to) = (from as usize * BLOCK_ROWS + row, to as usize * BLOCK_ROWS + row);
                self.rows[to] = self.rows[from].clone();
                self.salts[to] = self.salts[from].clone();
            }
        }

        /// What is found is what would be computed.
        fn check(&self, sequence: usize) {
            let Sequence { salt, table, positions } = &self.sequences[sequence];
            for row in 0..positions.len() {
                let slot = table.slot(row).expect("a slot");
                assert_eq!(self.rows[slot].as_deref(), Some(&positions[..=row]), "row {row}");
                assert_eq!(self.salts[slot].as_ref(), Some(&salt.0), "row {row} is another user's");
            }
        }

        fn begin(&mut self) {
            let salt = Salt(vec![self.below(2) as u8]);
            let length = 1 + self.below(90);
            let prompt: Vec<CachedPosition> = (0..length).map(|index| self.position(index)).collect();
            let PrefixHit { mut table, rows, copy } = self.pool.find_prefix(&salt, &prompt);
            assert!(rows < length, "the last position is computed");
            self.copy(copy);
            self.hits += usize::from(rows > 0);
            if !self.pool.extend(&mut table, length) {
                self.pool.release(table, &prompt[..rows]);
                return;
            }
            self.sequences.push(Sequence { salt, table, positions: prompt });
            let last = self.sequences.len() - 1;
            self.write(last, rows);
            self.check(last);
        }

        fn grow(&mut self, sequence: usize) {
            let index = self.sequences[sequence].positions.len();
            let next = self.position(index);
            let Sequence { table, positions, .. } = &mut self.sequences[sequence];
            if self.pool.extend(table, index + 1) {
                positions.push(next);
                self.write(sequence, index);
            }
        }

        fn step(&mut self) {
            let (action, count) = (self.below(16), self.sequences.len());
            if action < 3 || count == 0 {
                return self.begin();
            }
            let sequence = self.below(count);
            match action {
                3..10 => self.grow(sequence),
                10..12 => {
                    let Sequence { table, positions, .. } = &mut self.sequences[sequence];
                    self.pool.register(table, positions);
                }
                12 => {
                    let rows = 1 + self.below(self.sequences[sequence].positions.len());
                    let Sequence { salt, table, positions } = &self.sequences[sequence];
                    let (salt, positions) = (salt.clone(), positions[..rows].to_vec());
                    let Some((table, copy)) = self.pool.fork(table, rows) else { return };
                    self.copy(copy);
                    self.sequences.push(Sequence { salt, table, positions });
                }
                _ => {
                    let Sequence { table, positions, .. } = self.sequences.swap_remove(sequence);
                    self.pool.release(table, &positions);
                }
            }
        }

        /// Every block is free, cached, or in the tables that its references count, and never two of these.
        fn check_blocks(&self) {
            let pool = &self.pool;
            let mut references = vec![0; pool.count()];
            for block in self.sequences.iter().flat_map(|sequence| sequence.table.blocks()) {
                references[*block as usize] += 1;
            }
            let free: HashSet<BlockId> = pool.free.iter().copied().collect();
            assert_eq!(free.len(), pool.free.len(), "a block is free twice");
            let mut unused = 0;
            for (id, block) in pool.blocks.iter().enumerate() {
                assert_eq!(block.references, references[id], "block {id}");
                assert_eq!(free.contains(&(id as BlockId)), block.references == 0 && block.cached.is_none());
                unused += usize::from(block.references == 0 && block.cached.is_some());
            }
            assert_eq!(pool.unused, unused);
            assert!(unused == 0 || !pool.evictable.is_empty(), "{unused} unused blocks, none of which can go");
            let used = references.iter().filter(|count| **count > 0).count();
            assert_eq!(pool.available() + used, pool.count());
        }
    }

    #[test]
    fn random_operations_neither_leak_nor_mix_up_blocks() {
        let mut model = Model::new(48);
        for _ in 0..10_000 {
            model.step();
            model.check_blocks();
        }
        for sequence in 0..model.sequences.len() {
            model.check(sequence);
        }
        assert!(model.hits > 500 && model.copies > 100 && model.pool.evicted() > 500, "{} hits", model.hits);
        for Sequence { table, positions, .. } in std::mem::take(&mut model.sequences) {
            model.pool.release(table, &positions);
        }
        assert_eq!(model.pool.available(), 48);
        model.check_blocks();
        model.pool.drop_cached();
        assert_eq!((model.pool.free.len(), model.pool.cached()), (48, 0));
        assert!(model.pool.by_key.is_empty() && model.pool.children.is_empty() && model.pool.evictable.is_empty());
    }

    fn text(ids: std::ops::Range<u32>) -> Vec<CachedPosition> {
        ids.map(CachedPosition::Text).collect()
    }

    #[test]
    fn a_prefix_is_found_up_to_the_position_before_the_last() {
        let mut pool = BlockPool::new(8);
        let mut table = BlockTable::new(Salt::default());
        assert!(pool.extend(&mut table, 40));
        pool.release(table, &text(0..40));
        // [cached rows of prompts of that length]
        for (length, rows) in [(0, 0), (1, 0), (2, 1), (16, 15), (17, 16), (33, 32), (40, 39), (41, 40), (60, 40)] {
            let hit = pool.find_prefix(&Salt::default(), &text(0..length));
            assert_eq!(
                (hit.rows, hit.copy.map_or(0, |copy| copy.rows)),
                (rows, rows % BLOCK_ROWS),
                "{length} positions"
            );
            pool.release(hit.table, &text(0..rows as u32));
            let other = pool.find_prefix(&Salt(vec![1]), &text(0..length));
            assert_eq!(other.rows, 0, "another user's");
        }
    }

    #[test]
    fn the_least_recently_used_leaf_is_evicted_first() {
        let mut pool = BlockPool::new(4);
        let put = |pool: &mut BlockPool, ids: std::ops::Range<u32>| {
            let mut hit = pool.find_prefix(&Salt::default(), &text(ids.clone()));
            assert!(pool.extend(&mut hit.table, ids.len()));
            pool.release(hit.table, &text(ids));
        };
        put(&mut pool, 0..32);
        put(&mut pool, 100..132);
        put(&mut pool, 0..32);
        // One block is needed: the second one of the prefix that was used longest ago.
        put(&mut pool, 200..216);
        let rows = |pool: &mut BlockPool, ids: std::ops::Range<u32>| {
            let hit = pool.find_prefix(&Salt::default(), &text(ids));
            let rows = hit.table.capacity();
            pool.release(hit.table, &[]);
            rows
        };
        assert_eq!([rows(&mut pool, 0..33), rows(&mut pool, 100..133), rows(&mut pool, 200..217)], [32, 16, 16]);
    }

    #[test]
    fn sequences_that_compute_the_same_block_share_one_afterwards() {
        let mut pool = BlockPool::new(8);
        let mut tables = [(); 2].map(|()| BlockTable::new(Salt::default()));
        for table in &mut tables {
            assert!(pool.extend(table, 20));
            pool.register(table, &text(0..20));
        }
        assert_eq!(tables[0].blocks()[0], tables[1].blocks()[0]);
        assert_ne!(tables[0].blocks()[1], tables[1].blocks()[1]);
        assert_eq!(pool.available(), 5);
        // The rest is cached once.
        for table in tables {
            pool.release(table, &text(0..20));
        }
        assert_eq!((pool.available(), pool.cached()), (8, 2));
    }

    #[test]
    fn images_of_other_sizes_or_views_differ() {
        let image = |width, height| Image::new(width, height, vec![9; 36]).expect("an image");
        let digests = [
            ImageDigest::new(&image(3, 4), "square"),
            ImageDigest::new(&image(4, 3), "square"),
            ImageDigest::new(&image(3, 4), "cropped"),
        ];
        let distinct: HashSet<ImageDigest> = digests.into_iter().collect();
        assert_eq!(distinct.len(), 3);
    }
}
