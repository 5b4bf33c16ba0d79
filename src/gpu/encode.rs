//! Commands and their encoding for the queue.

use std::sync::Arc;

use super::dispatch::{Cost, MAX_PARAMS_BYTES};
use super::kernel::Pipeline;
use super::timestamps::PendingTimes;

#[derive(Debug, Clone)]
pub(super) enum Command {
    Dispatch {
        pipeline: Arc<Pipeline>,
        bind_group: wgpu::BindGroup,
        grid: [u32; 3],
        cost: Cost,
    },
    Copy {
        source: wgpu::Buffer,
        source_offset: u64,
        target: wgpu::Buffer,
        target_offset: u64,
        bytes: u64,
    },
    /// Bytes of the host, in a buffer made for them.
    Upload {
        staging: wgpu::Buffer,
        target: wgpu::Buffer,
        target_offset: u64,
    },
}

/// The lists of a recording, emptied for the next one.
#[derive(Debug, Default)]
pub(super) struct RecycledLists {
    pub(super) commands: Vec<Command>,
    pub(super) params: Vec<u8>,
}

/// Encodes commands in order, each dispatch in a timed pass if `times` is given.
pub(super) fn encode(
    encoder: &mut wgpu::CommandEncoder,
    commands: &[Command],
    mut times: Option<PendingTimes>,
) -> Option<PendingTimes> {
    let mut slot = 0u32;
    let mut remaining = commands.iter().peekable();
    while let Some(command) = remaining.peek() {
        match command {
            Command::Copy { source, source_offset, target, target_offset, bytes } => {
                encoder.copy_buffer_to_buffer(source, *source_offset, target, *target_offset, Some(*bytes));
                remaining.next();
            }
            Command::Upload { staging, target, target_offset } => {
                encoder.copy_buffer_to_buffer(staging, 0, target, *target_offset, None);
                remaining.next();
            }
            Command::Dispatch { .. } => {
                let timestamp_writes = times.as_ref().map(|times| times.writes(slot));
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                // One pass for all dispatches in a row; one for each when they are timed.
                while let Some(Command::Dispatch { pipeline, bind_group, grid, cost }) = remaining.peek() {
                    pass.set_pipeline(&pipeline.raw);
                    pass.set_bind_group(0, bind_group, &[slot * MAX_PARAMS_BYTES as u32]);
                    pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
                    slot += 1;
                    remaining.next();
                    if let Some(times) = &mut times {
                        times.dispatches.push((pipeline.name, *cost));
                        break;
                    }
                }
            }
        }
    }
    if let Some(times) = &times {
        encoder.resolve_query_set(&times.queries, 0..2 * slot, &times.resolved, 0);
        encoder.copy_buffer_to_buffer(&times.resolved, 0, &times.staging, 0, None);
    }
    times
}
