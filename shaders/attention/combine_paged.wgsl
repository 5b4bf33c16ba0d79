// The splits of a query position are those of its keys (see attention_paged.wgsl).
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<uniform> params: Params;

fn splits_of(position: u32) -> u32 {
    return tables[params.splits + position];
}
