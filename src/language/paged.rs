//! Keys and values in blocks, for sequences that join and leave.

use super::{LanguageModel, Position};
use crate::gpu::{Gpu, Recorder, Replay};
use crate::ops::{self, BLOCK_ROWS, BlockTables, KvCache, PagedForm, PagedSequence, Place, Places, RopeTable};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Keys and values of all layers in blocks of [`BLOCK_ROWS`] rows. Which sequence has which block is up to the caller.
#[derive(Debug)]
pub struct PagedCache {
    layers: Vec<KvCache>,
    /// One for each of the model's kinds of RoPE.
    tables: Vec<RopeTable>,
    blocks: usize,
}

/// The rows of a sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct StepRows<'a> {
    /// Its queries are the rows; its keys end with them.
    pub sequence: PagedSequence<'a>,
    /// In a decoding step: which of the chosen tokens the row is.
    pub token: u32,
}

/// The buffers of steps.
#[derive(Debug)]
pub struct PagedStep {
    /// One for each of the model's kinds of RoPE.
    places: Vec<Places>,
    tables: BlockTables,
    /// The residual stream of a decoding step, [rows, hidden].
    x: Tensor,
    recorded: Option<RecordedStep>,
}

/// The layers' dispatches of a decoding step. They are the same for all steps with as many rows and splits.
#[derive(Debug)]
struct RecordedStep {
    rows: usize,
    splits: usize,
    replay: Replay,
}

impl PagedCache {
    /// Its blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Records a copy of the first `rows` rows of block `from` to block `to`.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn copy_rows(&self, recorder: &mut Recorder, from: u32, to: u32, rows: usize) -> Result<()> {
        let first = |block: u32| block as usize * BLOCK_ROWS;
        self.layers.iter().try_for_each(|layer| layer.copy_within(recorder, first(from), first(to), rows))
    }
}

impl PagedStep {
    fn set(&mut self, gpu: &Gpu, cache: &PagedCache, rows: &[StepRows<'_>]) -> Result<()> {
        let sequences: Vec<PagedSequence<'_>> = rows.iter().map(|rows| rows.sequence).collect();
        self.tables.set(gpu, &sequences)?;
        if self.tables.blocks() > cache.blocks {
            return Err(Error::InvalidArgument(format!(
                "{} blocks are referred to; the cache has {}",
                self.tables.blocks(),
                cache.blocks
            )));
        }
        let places = rows.iter().flat_map(|StepRows { sequence, token }| {
            (sequence.keys - sequence.queries..sequence.keys).map(|position| Place {
                token: *token,
                position,
                row: sequence.blocks[position / BLOCK_ROWS] as usize * BLOCK_ROWS + position % BLOCK_ROWS,
            })
        });
        let places: Vec<Place> = places.collect();
        self.places.iter_mut().try_for_each(|of_rope| of_rope.set(gpu, &places))
    }

    fn record_places(&self, recorder: &mut Recorder, cache: &PagedCache, chosen: &Tensor) -> Result<()> {
        let tables = self.places.iter().zip(&cache.tables);
        tables.into_iter().try_for_each(|(places, table)| places.record(recorder, table, chosen))
    }
}

impl LanguageModel {
    /// A cache of `blocks` blocks, for sequences of up to `positions` positions.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if keys or values of a layer do not fit into one binding; other
    /// [device errors](crate::gpu).
    pub fn paged_cache(&self, gpu: &Gpu, blocks: usize, positions: usize) -> Result<PagedCache> {
        let columns = self.config.num_kv_heads * self.config.head_dim;
        let layer = |_| KvCache::new(gpu, blocks * BLOCK_ROWS, columns, self.half_cache);
        let ropes = self.config.ropes(positions);
        let tables = ropes.iter().map(|rope| RopeTable::new(gpu, positions, self.config.head_dim, rope));
        Ok(PagedCache {
            layers: (0..self.layers.len()).map(layer).collect::<Result<_>>()?,
            tables: tables.collect::<Result<_>>()?,
            blocks,
        })
    }

    /// Bytes that a block of such a cache takes.
    pub fn paged_block_bytes(&self) -> u64 {
        let columns = self.config.num_kv_heads * self.config.head_dim;
        KvCache::bytes_for(BLOCK_ROWS, columns, self.half_cache) * self.layers.len() as u64
    }

    /// Buffers for steps of up to `rows` rows, of `sequences` sequences that have `blocks` blocks in all.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn paged_step(&self, gpu: &Gpu, rows: usize, sequences: usize, blocks: usize) -> Result<PagedStep> {
        let ropes = self.config.ropes(0);
        let places = ropes.iter().map(|rope| Places::new(gpu, rows, self.config.head_dim, rope));
        Ok(PagedStep {
            places: places.collect::<Result<_>>()?,
            tables: BlockTables::new(gpu, sequences, rows, blocks)?,
            x: Tensor::zeros(gpu, &[sequences, self.config.hidden_size], "decoding step")?,
            recorded: None,
        })
    }

    /// Runs all layers over x, the embeddings of `rows`, in place. `chosen` are the chosen tokens, which are not used.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::InvalidArgument`] if the rows do not fit the buffers or the cache.
    pub fn prefill_paged(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        cache: &PagedCache,
        step: &mut PagedStep,
        chosen: &Tensor,
        rows: &[StepRows<'_>],
    ) -> Result<()> {
        let gpu = recorder.gpu().clone();
        step.set(&gpu, cache, rows)?;
        step.record_places(recorder, cache, chosen)?;
        self.layers_paged(recorder, x, cache, step, PagedForm::Prefill)
    }

    /// Runs all layers over one row of each sequence, whose tokens are in `chosen`. Returns the residual stream after
    /// the last layer, [rows, hidden]; the next step overwrites it. The layers are recorded once for as many rows and
    /// splits and replayed for the steps after it.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::InvalidArgument`] if the rows do not fit the buffers or the cache.
    pub fn decode_paged(
        &self,
        recorder: &mut Recorder,
        cache: &PagedCache,
        step: &mut PagedStep,
        chosen: &Tensor,
        rows: &[StepRows<'_>],
    ) -> Result<Tensor> {
        let gpu = recorder.gpu().clone();
        step.set(&gpu, cache, rows)?;
        step.record_places(recorder, cache, chosen)?;
        let x = step.x.slice_rows(0..rows.len());
        ops::gather(recorder, step.places[0].tokens(), 0, &self.embedding, self.embedding_scale(), &x)?;
        let splits = step.tables.splits();
        if let Some(recorded) = &step.recorded
            && (recorded.rows, recorded.splits) == (rows.len(), splits)
        {
            recorder.replay(&recorded.replay, 0)?;
            return Ok(x);
        }
        // Its buffers return to the pool first, so that the new recording uses them.
        step.recorded = None;
        let layers = |recorder: &mut Recorder| self.layers_paged(recorder, &x, cache, step, PagedForm::Decode);
        let ((), replay) = recorder.capture(layers)?;
        step.recorded = replay.map(|replay| RecordedStep { rows: rows.len(), splits, replay });
        Ok(x)
    }

    fn layers_paged(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        cache: &PagedCache,
        step: &PagedStep,
        form: PagedForm,
    ) -> Result<()> {
        let layers = self.layers.iter().zip(&cache.layers);
        layers.into_iter().try_for_each(|(layer, keys_values)| {
            layer.forward_paged(recorder, x, keys_values, &step.places, &step.tables, form)
        })
    }

    /// Checks that the tokens of `positions` are in the vocabulary.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one is not.
    pub fn check_tokens(&self, positions: &[Position]) -> Result<()> {
        let vocab = self.config.vocab_size as u32;
        let outside = positions.iter().find_map(|position| match position {
            Position::Text(id) if *id >= vocab => Some(*id),
            _ => None,
        });
        outside.map_or(Ok(()), |id| {
            Err(Error::InvalidArgument(format!("token {id} is outside the vocabulary of {vocab}")))
        })
    }
}
