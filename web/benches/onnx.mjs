// Writes ONNX models of one operator. The format is protobuf (onnx.proto); these few fields are enough, so no library is needed.

const FLOAT = 1, UINT8 = 2;

function varint(value) {
  const bytes = [];
  for (let rest = BigInt(value); ; ) {
    const low = Number(rest & 0x7fn);
    rest >>= 7n;
    bytes.push(rest ? low | 0x80 : low);
    if (!rest) return Buffer.from(bytes);
  }
}
const bytes = (field, content) => Buffer.concat([varint((field << 3) | 2), varint(content.length), content]);
const text = (field, value) => bytes(field, Buffer.from(value));
const integer = (field, value) => Buffer.concat([varint(field << 3), varint(value)]);

const attribute = ([name, value]) => {
  const parts = [text(1, name)];
  if (Array.isArray(value)) parts.push(...value.map((item) => integer(8, item)), integer(20, 7));
  else parts.push(integer(3, value), integer(20, 2));
  return Buffer.concat(parts);
};

const info = ({ name, dims }) => {
  const shape = Buffer.concat(dims.map((dim) => bytes(1, integer(1, dim))));
  return Buffer.concat([text(1, name), bytes(2, bytes(1, Buffer.concat([integer(1, FLOAT), bytes(2, shape)])))]);
};

const tensor = ({ name, dims, data }) =>
  Buffer.concat([
    ...dims.map((dim) => integer(1, dim)),
    integer(2, data instanceof Uint8Array ? UINT8 : FLOAT),
    text(8, name),
    bytes(9, Buffer.from(data.buffer, data.byteOffset, data.byteLength)),
  ]);

const node = ({ operator, domain = "", attributes = {}, inputs, output }) =>
  Buffer.concat([
    ...inputs.map((name) => text(1, name)),
    text(2, output),
    text(4, operator),
    ...Object.entries(attributes).map((entry) => bytes(5, attribute(entry))),
    text(7, domain),
  ]);

/** A model with several nodes. `inputs` are fed, `weights` are in the file. */
export function graph({ nodes, inputs, weights = [], output }) {
  const graph = Buffer.concat([
    ...nodes.map((each) => bytes(1, node(each))),
    text(2, "graph"),
    ...weights.map((weight) => bytes(5, tensor(weight))),
    ...inputs.map((input) => bytes(11, info(input))),
    bytes(12, info(output)),
  ]);
  const opset = (name, version) => bytes(8, Buffer.concat([text(1, name), integer(2, version)]));
  return Buffer.concat([integer(1, 8), bytes(7, graph), opset("", 17), opset("com.microsoft", 1)]);
}

/** A model with one node. */
export function model({ operator, domain, attributes, inputs, weights = [], output }) {
  const names = [...inputs, ...weights].map(({ name }) => name);
  return graph({ nodes: [{ operator, domain, attributes, inputs: names, output: output.name }], inputs, weights, output });
}
