//! Buffers, the pool that recycles them, and the account of device memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::lock::Lock;
use crate::{Error, Result};

/// Device memory in use by this program, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryUse {
    /// Allocated now, free buffers in the pool included.
    pub allocated: u64,
    /// The most that was ever allocated.
    pub peak: u64,
    /// The most that may be allocated, if the user set a limit.
    pub limit: Option<u64>,
}

/// A storage buffer. Dropping a pooled one returns it to the pool.
///
/// A pooled buffer may be used again by a later recording (or later in the same one) as soon as it is dropped: the
/// queue keeps the order. It must therefore never be written by the queue directly, only by recorded commands.
#[derive(Debug)]
pub struct Buffer {
    raw: Option<wgpu::Buffer>,
    /// Never used twice, so that cached bind groups cannot mistake one buffer for another.
    id: u64,
    bytes: u64,
    memory: Weak<Memory>,
    pooled: bool,
}

impl Buffer {
    /// A unique number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it returns to the pool.
    pub(super) fn pooled(&self) -> bool {
        self.pooled
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        // `raw` is taken only in `drop`.
        self.raw.as_ref().expect("a live buffer")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (Some(raw), Some(memory)) = (self.raw.take(), self.memory.upgrade()) else { return };
        let unused = RetiredBuffer { raw, id: self.id, before: memory.begun.load(Ordering::Acquire) };
        if self.pooled {
            memory.free.lock().entry(self.bytes).or_default().push(unused);
        } else {
            memory.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
            memory.dropped_ids.lock().push(self.id);
            memory.retire([unused]);
        }
    }
}

/// A recording in progress: it may use buffers that were dropped since it began.
#[derive(Debug)]
pub(super) struct Recording {
    memory: Arc<Memory>,
    number: u64,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut retired = self.memory.retired.lock();
        retired.live.remove(&self.number);
        retired.destroy_unused();
    }
}

/// A dropped buffer.
#[derive(Debug)]
struct RetiredBuffer {
    raw: wgpu::Buffer,
    id: u64,
    /// The number of the next recording at that time: it and later ones do not use the buffer.
    before: u64,
}

/// Buffers to destroy, and the recordings that may still use them.
#[derive(Debug, Default)]
struct Retired {
    buffers: Vec<RetiredBuffer>,
    /// The recordings in progress.
    live: BTreeSet<u64>,
}

impl Retired {
    fn destroy_unused(&mut self) {
        let oldest = self.live.first().copied().unwrap_or(u64::MAX);
        // The queue finishes submitted work with them first.
        self.buffers.extract_if(.., |unused| unused.before <= oldest).for_each(|unused| unused.raw.destroy());
    }
}

/// The allocator of a device.
#[derive(Debug)]
pub(super) struct Memory {
    device: wgpu::Device,
    limit: Option<u64>,
    max_buffer_bytes: u64,
    /// Buffers are counted but take no memory ([`TestOptions::planned`](super::TestOptions::planned)).
    planned: bool,
    allocated: AtomicU64,
    peak: AtomicU64,
    next_id: AtomicU64,
    /// Free pooled buffers by size.
    free: Lock<BTreeMap<u64, Vec<RetiredBuffer>>>,
    /// Buffers dropped since [`Memory::take_dropped_ids`] was last called. Whatever else refers to them keeps their
    /// memory.
    dropped_ids: Lock<Vec<u64>>,
    retired: Lock<Retired>,
    /// Recordings begun so far.
    begun: AtomicU64,
    /// Buffers after whose creation the device is out of memory, in tests.
    full_after: AtomicU64,
}

/// Size of the buffers of a planned device, in bytes.
const PLANNED_BYTES: u64 = 256;

const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Memory {
    pub(super) fn new(device: wgpu::Device, max_buffer_bytes: u64, limit: Option<u64>, planned: bool) -> Arc<Self> {
        Arc::new(Self {
            device,
            limit,
            max_buffer_bytes,
            planned,
            allocated: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            free: Lock::default(),
            dropped_ids: Lock::default(),
            retired: Lock::default(),
            begun: AtomicU64::new(0),
            full_after: AtomicU64::new(u64::MAX),
        })
    }

    /// The device's limit on a buffer.
    pub(super) fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }

    /// Lets the next `buffers` be created and refuses those after them; `None` ends that.
    pub(super) fn set_full_after(&self, buffers: Option<u64>) {
        let full = buffers.map_or(u64::MAX, |buffers| self.created() + buffers);
        self.full_after.store(full, Ordering::Relaxed);
    }

    /// Buffers made so far.
    pub(super) fn created(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    pub(super) fn usage(&self) -> MemoryUse {
        MemoryUse {
            allocated: self.allocated.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
            limit: self.limit,
        }
    }

    /// A buffer of at least `bytes` from the pool, its content undefined.
    pub(super) fn pooled(self: &Arc<Self>, bytes: u64, what: &str) -> Result<Buffer> {
        let bytes = size_class(bytes, self.max_buffer_bytes);
        let recycled = self.free.lock().get_mut(&bytes).and_then(|list| list.pop());
        if let Some(RetiredBuffer { raw, id, .. }) = recycled {
            return Ok(Buffer { raw: Some(raw), id, bytes, memory: Arc::downgrade(self), pooled: true });
        }
        self.create(bytes, true, what)
    }

    /// Takes the free buffers with these ids out of the pool, last bound first: dropping them in that order restores
    /// the pool. `None` if one is in use.
    pub(super) fn take_from_pool(self: &Arc<Self>, bound: &[u64]) -> Option<Vec<Buffer>> {
        let mut seen = HashSet::new();
        let mut ids: Vec<u64> = bound.iter().copied().filter(|id| seen.insert(*id)).collect();
        ids.reverse();
        let mut free = self.free.lock();
        let places: HashMap<u64, u64> =
            free.iter().flat_map(|(bytes, list)| list.iter().map(|unused| (unused.id, *bytes))).collect();
        if !ids.iter().all(|id| places.contains_key(id)) {
            return None;
        }
        let take = |id: &u64| {
            let bytes = places[id];
            let list = free.get_mut(&bytes)?;
            let RetiredBuffer { raw, id, .. } = list.remove(list.iter().position(|unused| unused.id == *id)?);
            Some(Buffer { raw: Some(raw), id, bytes, memory: Arc::downgrade(self), pooled: true })
        };
        // Every id was found. No buffer is dropped here, which would wait for the pool's lock.
        Some(ids.iter().filter_map(take).collect())
    }

    /// A buffer of exactly `bytes` (rounded up to 256), filled with zeros, that lives until it is dropped.
    pub(super) fn dedicated(self: &Arc<Self>, bytes: u64, what: &str) -> Result<Buffer> {
        self.create(bytes.max(1).next_multiple_of(256), false, what)
    }

    fn create(self: &Arc<Self>, bytes: u64, pooled: bool, what: &str) -> Result<Buffer> {
        let out_of_memory = |available| Error::OutOfMemory { what: what.to_owned(), needed: bytes, available };
        if bytes > self.max_buffer_bytes {
            return Err(out_of_memory(self.max_buffer_bytes));
        }
        if self.created() >= self.full_after.load(Ordering::Relaxed) {
            return Err(out_of_memory(0));
        }
        if let Some(limit) = self.limit {
            let allocated = self.allocated.load(Ordering::Relaxed);
            if allocated + bytes > limit {
                return Err(out_of_memory(limit.saturating_sub(allocated)));
            }
        }
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: if self.planned { bytes.min(PLANNED_BYTES) } else { bytes },
            usage: USAGE,
            mapped_at_creation: false,
        });
        let allocated = self.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(allocated, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer { raw: Some(raw), id, bytes, memory: Arc::downgrade(self), pooled })
    }

    /// Returns the pool's free buffers to the device.
    pub(super) fn trim(&self) {
        let free = std::mem::take(&mut *self.free.lock());
        let bytes: u64 = free.iter().map(|(bytes, list)| bytes * list.len() as u64).sum();
        self.retire(free.into_values().flatten());
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that a recording has begun.
    pub(super) fn recording(self: &Arc<Self>) -> Recording {
        let mut retired = self.retired.lock();
        let number = self.begun.fetch_add(1, Ordering::AcqRel);
        retired.live.insert(number);
        Recording { memory: Arc::clone(self), number }
    }

    /// Takes buffers that will not be recorded any more. Their memory is freed as soon as no recording can use them,
    /// explicitly: in browsers dropping leaves it to the garbage collector, which does not know its size.
    fn retire(&self, buffers: impl IntoIterator<Item = RetiredBuffer>) {
        let mut retired = self.retired.lock();
        retired.buffers.extend(buffers);
        retired.destroy_unused();
    }

    /// The ids of the buffers that were dropped since the last call.
    pub(super) fn take_dropped_ids(&self) -> Vec<u64> {
        std::mem::take(&mut *self.dropped_ids.lock())
    }
}

/// Rounds a size up to one of eight steps per power of two, so that buffers are found again; at most 1/8 is wasted.
fn size_class(bytes: u64, largest: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = (bytes.next_power_of_two() / 16).max(256);
    let rounded = bytes.next_multiple_of(step);
    // Near the device's limit the exact size is better than a refusal.
    if rounded > largest { bytes.next_multiple_of(256) } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for bytes in (1..100_000u64).chain([1 << 20, (1 << 20) + 1, (1 << 27) - 1, 1 << 27]) {
            let class = size_class(bytes, 1 << 40);
            assert!(class >= bytes && class.is_multiple_of(256), "{bytes} -> {class}");
            assert!(class <= bytes.max(256) + bytes / 8 + 256, "{bytes} -> {class}");
        }
        assert_eq!(size_class(1000, 1024), 1024);
    }
}
