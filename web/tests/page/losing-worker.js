// The package's worker, which loses its devices when the page says so: where no GPU process can be killed.

const devices = [];
const { requestDevice } = GPUAdapter.prototype;
GPUAdapter.prototype.requestDevice = async function (descriptor) {
  const device = await requestDevice.call(this, descriptor);
  devices.push(device);
  return device;
};
new BroadcastChannel("lose").onmessage = () => devices.splice(0).forEach((device) => device.destroy());
importScripts("/dist/worker.js");
