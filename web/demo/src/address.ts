/** Addresses of pictures, one for each, while the page is open. */
const addresses = new WeakMap<Blob, string>();

export function addressOf(blob: Blob): string {
  let address = addresses.get(blob);
  if (!address) {
    address = URL.createObjectURL(blob);
    addresses.set(blob, address);
  }
  return address;
}
