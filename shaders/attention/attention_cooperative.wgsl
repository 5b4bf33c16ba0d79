// Attention of many query rows on a GPU's matrix units. A workgroup takes ROWS rows and blocks of KEYS keys. Queries,
// keys, values and probabilities are staged in f16, scores and sums are f32. A subgroup computes a part: its rows'
// scores of KEYS / COLUMN_PARTS keys, and their sums over head_dim / COLUMN_PARTS elements. The sums stay in matrices:
// probabilities are relative to a reference of each row, at most SLACK below its maximum, and only when a reference
// rises are the sums scaled, through workgroup memory. While matrices are multiplied, the next keys and values are
// loaded into registers. With fewer subgroups than parts, each computes several, one after the other. HEAD4,
// ROW_PARTS, COLUMN_PARTS, ROW_MATRICES, KEYS, WORKGROUP and HELD (queries in registers) are constants.
const PARTS: u32 = ROW_PARTS * COLUMN_PARTS;
const PART_ROWS: u32 = ROW_MATRICES * SIZE;
const ROWS: u32 = ROW_PARTS * PART_ROWS;
// Matrices along a head, and elements of a head that all of them have.
const HEAD_MATRICES: u32 = (4u * HEAD4 + SIZE * COLUMN_PARTS - 1u) / (SIZE * COLUMN_PARTS) * COLUMN_PARTS;
const HEAD: u32 = HEAD_MATRICES * SIZE;
const COLUMNS: u32 = HEAD_MATRICES / COLUMN_PARTS;     // matrices of a part's sums, of each matrix of rows
const KEY_MATRICES: u32 = KEYS / SIZE / COLUMN_PARTS;       // of a part's scores
const KEY4: u32 = KEYS / 4u;
// Rows of tiles in fours. Neighbouring rows begin in different banks, and all at a multiple of 16 bytes.
const HEAD_STRIDE4: u32 = HEAD / 4u + 2u;      // of queries and of keys
const KEY_STRIDE4: u32 = KEY4 + 2u;      // of values, [head_dim][key], and of probabilities
const SCORE_STRIDE4: u32 = KEY4 + 1u;
// Where tiles begin, in fours. Queries that registers hold are in place of what comes later.
const KEY_TILE: u32 = select(ROWS * HEAD_STRIDE4, 0u, HELD == 1u);
const VALUE_TILE: u32 = KEY_TILE + KEYS * HEAD_STRIDE4;
const PROBABILITIES: u32 = VALUE_TILE + HEAD * KEY_STRIDE4;
const END: u32 = max(PROBABILITIES + ROWS * KEY_STRIDE4, ROWS * HEAD_STRIDE4);
// Runs of eight elements of a head, and the number of them that an invocation stages of a block's keys; and fours of the
// values of four keys.
const RUNS: u32 = HEAD4 / 2u;
const KEY_ITEMS: u32 = KEYS * RUNS;
const KEYS_EACH: u32 = (KEY_ITEMS + WORKGROUP - 1u) / WORKGROUP;
const VALUE_ITEMS: u32 = KEY4 * HEAD4;
const VALUES_EACH: u32 = (VALUE_ITEMS + WORKGROUP - 1u) / WORKGROUP;
// Neighbouring invocations share a row's softmax.
const LANES: u32 = WORKGROUP / ROWS;
const OWNED4: u32 = KEY4 / LANES;
// Probabilities are at most exp2(SLACK) = 256: f16 holds them, and f32 their sums over all keys.
const SLACK: f32 = 8.0;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;

var<workgroup> tiles: array<Element, END * PER_FOUR>;
var<workgroup> scores: array<Score, ROWS * SCORE_STRIDE4 * PER_FOUR>;     // [row][key]; later, a matrix of each part
var<workgroup> row_factor: array<f32, ROWS>;
var<workgroup> row_total: array<vec2<f32>, ROWS>;            // reference and denominator
// 1 if a reference has risen. Invocations that store at the same time store the same value. (Not atomic: naga takes the
// result of an atomic load for non-uniform, and rejects matrix operations that depend on it.)
var<workgroup> risen: u32;

// The scores of the four keys from `key` on, up to and with `last`.
fn masked(four: vec4<f32>, key: u32, last: u32) -> vec4<f32> {
    return select(vec4(LOWEST), four, vec4(key) + vec4(0u, 1u, 2u, 3u) <= vec4(last));
}

fn largest(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

@compute @workgroup_size(WORKGROUP)
fn attention_cooperative(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                         @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32,
                         @builtin(num_subgroups) subgroups: u32) {
    let kv_head = group.y;
    let work = work_of(group);
    let row0 = work.block * ROWS;
    let last_row = query_rows(work) - 1u;
    let range = key_range(work, min(row0 + ROWS - 1u, last_row));
    let last_key = range.y - 1u;
    let key_start = params.key_start + kv_head * HEAD4;
    let value_start = params.value_start + kv_head * HEAD4;
    // The softmax of a row, fours of keys lane, lane + LANES, ...
    let my_row = local / LANES;
    let lane = local % LANES;
    var attended = last_key;
    var always_attended = last_key;     // by all rows
    if CAUSAL == 1u {
        attended = min(last_key, first_position(work) + min(row0 + my_row, last_row) / params.group);
        always_attended = min(last_key, first_position(work) + row0 / params.group);
    }
    for (var first = 0u; first < PARTS; first += max(subgroups, 1u)) {
        // The same for a whole subgroup. Subgroups past the parts compute the last one again, and store no output.
        let part = first + subgroup;
        let within = min(part, PARTS - 1u);
        let part_row = within / COLUMN_PARTS * PART_ROWS;
        let part_key = within % COLUMN_PARTS * KEY_MATRICES * SIZE;
        let part_column = within % COLUMN_PARTS * COLUMNS * SIZE;
        workgroupBarrier();
        for (var item = local; item < ROWS * HEAD / 4u; item += WORKGROUP) {
            let row = item / (HEAD / 4u);
            let column = item % (HEAD / 4u);
            let at = query_offset(work, min(row0 + row, last_row), kv_head) + min(column, HEAD4 - 1u);
            let four = stage(params.scale * LOG2_E * queries[at]);
            put(row * HEAD_STRIDE4 + column, select(vec4<f16>(), four, column < HEAD4));
        }
        if local == 0u {
            risen = 0u;
        }
        workgroupBarrier();
        var held: array<Left, select(1u, ROW_MATRICES * HEAD_MATRICES, HELD == 1u)>;
        if HELD == 1u {
            for (var i = 0u; i < ROW_MATRICES; i++) {
                for (var d = 0u; d < HEAD_MATRICES; d++) {
                    let at = ((part_row + i * SIZE) * HEAD_STRIDE4 + d * (SIZE / 4u)) * PER_FOUR;
                    held[i * HEAD_MATRICES + d] = coopLoadT<Left>(&tiles[at], HEAD_STRIDE4 * PER_FOUR);
                }
            }
            workgroupBarrier();
        }
        // Elements past the end of keys are 0, as those of queries are.
        for (var item = local; item < KEYS * (HEAD / 4u - HEAD4); item += WORKGROUP) {
            let column = HEAD4 + item / KEYS;
            put(KEY_TILE + item % KEYS * HEAD_STRIDE4 + column, vec4<f16>());
        }
        var next_keys: array<Run, KEYS_EACH>;
        for (var i = 0u; i < KEYS_EACH; i++) {
            let item = local + i * WORKGROUP;
            let key = min(range.x + item / RUNS, last_key);
            next_keys[i] = load_key_run(key_start + key * params.key_stride + 2u * (item % RUNS));
        }
        for (var i = 0u; i < KEYS_EACH; i++) {
            stage_key(local + i * WORKGROUP, next_keys[i]);
        }
        var sums: array<Sums, ROW_MATRICES * COLUMNS>;
        for (var i = 0u; i < ROW_MATRICES * COLUMNS; i++) {
            sums[i] = Sums();
        }
        var reference = LOWEST;
        var denominator = 0.0;      // of this invocation's keys
        workgroupBarrier();

        for (var block = range.x; block < range.y; block += KEYS) {
            // The next keys, and the values of this block.
            for (var i = 0u; i < KEYS_EACH; i++) {
                let item = local + i * WORKGROUP;
                let key = min(block + KEYS + item / RUNS, last_key);
                next_keys[i] = load_key_run(key_start + key * params.key_stride + 2u * (item % RUNS));
            }
            var next_values: array<Four, 4u * VALUES_EACH>;
            for (var i = 0u; i < VALUES_EACH; i++) {
                let item = local + i * WORKGROUP;
                let key = block + 4u * (item / HEAD4);
                for (var k = 0u; k < 4u; k++) {
                    let at = value_start + min(key + k, last_key) * params.value_stride + item % HEAD4;
                    next_values[4u * i + k] = load_value(at);
                }
            }
            var products: array<Sums, ROW_MATRICES * KEY_MATRICES>;
            for (var i = 0u; i < ROW_MATRICES * KEY_MATRICES; i++) {
                products[i] = Sums();
            }
            for (var d = 0u; d < HEAD_MATRICES; d++) {
                var left: array<Left, ROW_MATRICES>;
                for (var i = 0u; i < ROW_MATRICES; i++) {
                    if HELD == 1u {
                        left[i] = held[i * HEAD_MATRICES + d];
                    } else {
                        let at = ((part_row + i * SIZE) * HEAD_STRIDE4 + d * (SIZE / 4u)) * PER_FOUR;
                        left[i] = coopLoadT<Left>(&tiles[at], HEAD_STRIDE4 * PER_FOUR);
                    }
                }
                for (var j = 0u; j < KEY_MATRICES; j++) {
                    // A key is a column of the right factor.
                    let at = (KEY_TILE + (part_key + j * SIZE) * HEAD_STRIDE4 + d * (SIZE / 4u)) * PER_FOUR;
                    let right = coopLoad<Right>(&tiles[at], HEAD_STRIDE4 * PER_FOUR);
                    for (var i = 0u; i < ROW_MATRICES; i++) {
                        let index = i * KEY_MATRICES + j;
                        products[index] = coopMultiplyAdd(left[i], right, products[index]);
                    }
                }
            }
            for (var i = 0u; i < ROW_MATRICES; i++) {
                for (var j = 0u; j < KEY_MATRICES; j++) {
                    let at = ((part_row + i * SIZE) * SCORE_STRIDE4 + (part_key + j * SIZE) / 4u) * PER_FOUR;
                    coopStoreT(products[i * KEY_MATRICES + j], &scores[at], SCORE_STRIDE4 * PER_FOUR);
                }
            }
            workgroupBarrier();

            var own: array<vec4<f32>, OWNED4>;
            for (var i = 0u; i < OWNED4; i++) {
                own[i] = score4(my_row * SCORE_STRIDE4 + lane + i * LANES);
            }
            // The same for the whole workgroup.
            if block + KEYS > always_attended + 1u {
                for (var i = 0u; i < OWNED4; i++) {
                    own[i] = masked(own[i], block + 4u * (lane + i * LANES), attended);
                }
            }
            var maximum = largest(own[0]);
            for (var i = 1u; i < OWNED4; i++) {
                maximum = max(maximum, largest(own[i]));
            }
            for (var step = 1u; step < LANES; step *= 2u) {
                maximum = max(maximum, subgroupShuffleXor(maximum, step));
            }
            var factor = 1.0;
            if maximum > reference + SLACK {
                factor = exp2(reference - maximum);
                reference = maximum;
                denominator *= factor;
                // Before the first block sums are 0.
                if block > range.x {
                    risen = 1u;
                }
            }
            if lane == 0u {
                row_factor[my_row] = factor;
            }
            for (var i = 0u; i < OWNED4; i++) {
                let p = exp2(own[i] - reference);
                denominator += (p.x + p.y) + (p.z + p.w);
                put(PROBABILITIES + my_row * KEY_STRIDE4 + lane + i * LANES, vec4<f16>(p));
            }
            for (var i = 0u; i < KEYS_EACH; i++) {
                stage_key(local + i * WORKGROUP, next_keys[i]);
            }
            for (var i = 0u; i < VALUES_EACH; i++) {
                let item = local + i * WORKGROUP;
                if VALUE_ITEMS % WORKGROUP == 0u || item < VALUE_ITEMS {
                    let v0 = value_four(next_values[4u * i]);
                    let v1 = value_four(next_values[4u * i + 1u]);
                    let v2 = value_four(next_values[4u * i + 2u]);
                    let v3 = value_four(next_values[4u * i + 3u]);
                    let at = VALUE_TILE + 4u * (item % HEAD4) * KEY_STRIDE4 + item / HEAD4;
                    put(at, vec4<f16>(v0.x, v1.x, v2.x, v3.x));
                    put(at + KEY_STRIDE4, vec4<f16>(v0.y, v1.y, v2.y, v3.y));
                    put(at + 2u * KEY_STRIDE4, vec4<f16>(v0.z, v1.z, v2.z, v3.z));
                    put(at + 3u * KEY_STRIDE4, vec4<f16>(v0.w, v1.w, v2.w, v3.w));
                }
            }
            workgroupBarrier();

            // The same for the whole workgroup.
            if risen == 1u {
                for (var i = 0u; i < ROW_MATRICES * COLUMNS; i++) {
                    // The matrices are rotated to index 0, one after the other: a computed index would put all of them
                    // into memory.
                    let sum = sums[0];
                    for (var j = 0u; j < ROW_MATRICES * COLUMNS - 1u; j++) {
                        sums[j] = sums[j + 1u];
                    }
                    coopStoreT(sum, &scores[within * SIZE * SIZE / 4u * PER_FOUR], SIZE / 4u * PER_FOUR);
                    workgroupBarrier();
                    for (var item = local; item < PARTS * SIZE * SIZE / 4u; item += WORKGROUP) {
                        let row = item / (SIZE * SIZE / 4u) / COLUMN_PARTS * PART_ROWS + i / COLUMNS * SIZE;
                        put_score4(item, row_factor[row + item % (SIZE * SIZE / 4u) / (SIZE / 4u)] * score4(item));
                    }
                    workgroupBarrier();
                    sums[ROW_MATRICES * COLUMNS - 1u] =
                        coopLoadT<Sums>(&scores[within * SIZE * SIZE / 4u * PER_FOUR], SIZE / 4u * PER_FOUR);
                    workgroupBarrier();
                }
                if local == 0u {
                    risen = 0u;
                }
            }
            for (var k = 0u; k < KEYS / SIZE; k++) {
                var left: array<Left, ROW_MATRICES>;
                for (var i = 0u; i < ROW_MATRICES; i++) {
                    let at = (PROBABILITIES + (part_row + i * SIZE) * KEY_STRIDE4 + k * (SIZE / 4u)) * PER_FOUR;
                    left[i] = coopLoadT<Left>(&tiles[at], KEY_STRIDE4 * PER_FOUR);
                }
                for (var j = 0u; j < COLUMNS; j++) {
                    let at = (VALUE_TILE + (part_column + j * SIZE) * KEY_STRIDE4 + k * (SIZE / 4u)) * PER_FOUR;
                    let right = coopLoad<Right>(&tiles[at], KEY_STRIDE4 * PER_FOUR);
                    for (var i = 0u; i < ROW_MATRICES; i++) {
                        sums[i * COLUMNS + j] = coopMultiplyAdd(left[i], right, sums[i * COLUMNS + j]);
                    }
                }
            }
        }

        for (var step = 1u; step < LANES; step *= 2u) {
            denominator += subgroupShuffleXor(denominator, step);
        }
        if lane == 0u {
            row_total[my_row] = vec2(LN_2 * reference, denominator);
        }
        for (var i = 0u; i < ROW_MATRICES * COLUMNS; i++) {
            // As above.
            let sum = sums[0];
            for (var j = 0u; j < ROW_MATRICES * COLUMNS - 1u; j++) {
                sums[j] = sums[j + 1u];
            }
            coopStoreT(sum, &scores[within * SIZE * SIZE / 4u * PER_FOUR], SIZE / 4u * PER_FOUR);
            workgroupBarrier();
            let end = min(first + subgroups, PARTS) * SIZE * SIZE / 4u;
            for (var item = first * SIZE * SIZE / 4u + local; item < end; item += WORKGROUP) {
                let of_part = item / (SIZE * SIZE / 4u);
                let at = item % (SIZE * SIZE / 4u);
                let row = of_part / COLUMN_PARTS * PART_ROWS + i / COLUMNS * SIZE + at / (SIZE / 4u);
                let column = (of_part % COLUMN_PARTS * COLUMNS + i % COLUMNS) * (SIZE / 4u) + at % (SIZE / 4u);
                if row0 + row <= last_row && column < HEAD4 {
                    store_output(work, row0 + row, kv_head, groups.y, column, score4(item), row_total[row]);
                }
            }
            workgroupBarrier();
        }
    }
}

fn stage_key(item: u32, run: Run) {
    if KEY_ITEMS % WORKGROUP == 0u || item < KEY_ITEMS {
        let at = KEY_TILE + item / RUNS * HEAD_STRIDE4 + 2u * (item % RUNS);
        put(at, run_four(run, 0u));
        put(at + 1u, run_four(run, 1u));
    }
}
