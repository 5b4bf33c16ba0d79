// What the rows of a step need: row r is the token chosen[steps[r].x], at position steps[r].y of its sequence and in row
// steps[r].z of the cache.
//     tokens[r] = chosen[steps[r].x]; lines[r] = (angles[steps[r].y], steps[r].z, 0, 0, 0)
// angles [positions, D4] vec4s, lines [rows, D4 + 1] vec4s. A row whose token is on the host has NO_ROW for steps[r].x, and
// tokens[r] is left unchanged. Rows of the cache are below 2^24: floats hold them exactly.
// Dispatch: one invocation per vec4 of the lines, 64 a workgroup, folded over x and y.
struct Params {
    rows: u32,
    d4: u32,       // vec4s of a position's angles
    padding0: u32,
    padding1: u32,
}

const NO_ROW: u32 = 0xffffffffu;

@group(0) @binding(0) var<storage, read> steps: array<u32>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> angles: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> lines: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(5) var<uniform> params: Params;

@compute @workgroup_size(64)
fn places(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    let row = i / (params.d4 + 1u);
    let column = i % (params.d4 + 1u);
    if row >= params.rows {
        return;
    }
    let token = steps[3u * row];
    if column < params.d4 {
        lines[i] = angles[steps[3u * row + 1u] * params.d4 + column];
        return;
    }
    lines[i] = vec4(f32(steps[3u * row + 2u]), 0.0, 0.0, 0.0);
    if token != NO_ROW {
        tokens[row] = chosen[token];
    }
}
