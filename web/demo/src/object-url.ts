/** Object URLs, one per image, for as long as the page is open. */
const urls = new WeakMap<Blob, string>();

export function objectUrl(blob: Blob): string {
  let url = urls.get(blob);
  if (!url) {
    url = URL.createObjectURL(blob);
    urls.set(blob, url);
  }
  return url;
}
