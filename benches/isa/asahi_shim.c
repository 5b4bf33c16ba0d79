/* An Apple GPU for Mesa's drm-shim, after the kernel's interface in <drm/asahi_drm.h>: Mesa's own shim is for an interface that was
 * never merged. Memory is host memory, everything else succeeds and does nothing. ASAHI_GPU=g13g is an M1, g14g an M2. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <drm/asahi_drm.h>

#include "drm-shim/drm_shim.h"

bool drm_shim_driver_prefers_first_render_node = true;

static struct drm_asahi_params_global gpu;
static char uevent[256];

static int
succeed(int fd, unsigned long request, void *data)
{
   return 0;
}

static int
get_params(int fd, unsigned long request, void *data)
{
   const struct drm_asahi_get_params *query = data;
   if (query->param_group != 0)
      return -EINVAL;
   const size_t size = query->size < sizeof(gpu) ? query->size : sizeof(gpu);
   memcpy((void *)(uintptr_t)query->pointer, &gpu, size);
   return 0;
}

static int
get_time(int fd, unsigned long request, void *data)
{
   ((struct drm_asahi_get_time *)data)->gpu_timestamp = 1;
   return 0;
}

/* Identifiers must not be zero. */
static int
vm_create(int fd, unsigned long request, void *data)
{
   ((struct drm_asahi_vm_create *)data)->vm_id = 1;
   return 0;
}

static int
queue_create(int fd, unsigned long request, void *data)
{
   ((struct drm_asahi_queue_create *)data)->queue_id = 1;
   return 0;
}

static int
bind_object(int fd, unsigned long request, void *data)
{
   ((struct drm_asahi_gem_bind_object *)data)->object_handle = 1;
   return 0;
}

static int
gem_create(int fd, unsigned long request, void *data)
{
   struct drm_asahi_gem_create *wanted = data;
   struct shim_bo *memory = calloc(1, sizeof(*memory));
   if (!memory)
      return -ENOMEM;
   drm_shim_bo_init(memory, wanted->size);
   wanted->handle = drm_shim_bo_get_handle(drm_shim_fd_lookup(fd), memory);
   drm_shim_bo_put(memory);
   return 0;
}

static int
gem_mmap_offset(int fd, unsigned long request, void *data)
{
   struct drm_asahi_gem_mmap_offset *wanted = data;
   struct shim_fd *file = drm_shim_fd_lookup(fd);
   struct shim_bo *memory = drm_shim_bo_lookup(file, wanted->handle);
   if (!memory)
      return -ENOENT;
   wanted->offset = drm_shim_bo_get_mmap_offset(file, memory);
   drm_shim_bo_put(memory);
   return 0;
}

static ioctl_fn_t calls[] = {
   [DRM_ASAHI_GET_PARAMS] = get_params,
   [DRM_ASAHI_GET_TIME] = get_time,
   [DRM_ASAHI_VM_CREATE] = vm_create,
   [DRM_ASAHI_VM_DESTROY] = succeed,
   [DRM_ASAHI_VM_BIND] = succeed,
   [DRM_ASAHI_GEM_CREATE] = gem_create,
   [DRM_ASAHI_GEM_MMAP_OFFSET] = gem_mmap_offset,
   [DRM_ASAHI_GEM_BIND_OBJECT] = bind_object,
   [DRM_ASAHI_QUEUE_CREATE] = queue_create,
   [DRM_ASAHI_QUEUE_DESTROY] = succeed,
   [DRM_ASAHI_SUBMIT] = succeed,
};

void
drm_shim_driver_init(void)
{
   const char *name = getenv("ASAHI_GPU");
   const bool m2 = name && strcmp(name, "g14g") == 0;
   const unsigned cores = m2 ? 10 : 8;
   gpu.gpu_generation = m2 ? 14 : 13;
   gpu.gpu_variant = 'G';
   gpu.chip_id = m2 ? 0x8112 : 0x8103;
   gpu.num_dies = 1;
   gpu.num_clusters_total = 1;
   gpu.num_cores_per_cluster = cores;
   gpu.core_masks[0] = (1u << cores) - 1;
   gpu.max_frequency_khz = m2 ? 1398000 : 1278000;
   gpu.vm_start = 0x4000;
   gpu.vm_end = 1ull << 39;
   gpu.vm_kernel_min_size = 512ull << 20;
   gpu.max_commands_per_submission = 64;
   gpu.max_attachments = 16;
   gpu.command_timestamp_frequency_hz = 24000000;

   shim_device.bus_type = DRM_BUS_PLATFORM;
   shim_device.driver_name = "asahi";
   shim_device.driver_ioctls = calls;
   shim_device.driver_ioctl_count = sizeof(calls) / sizeof(calls[0]);

   snprintf(uevent, sizeof(uevent),
            "DRIVER=asahi\nOF_FULLNAME=/soc/agx\nOF_COMPATIBLE_0=apple,gpu-%s\nOF_COMPATIBLE_N=1\n", m2 ? "g14g" : "g13g");
   drm_shim_override_file(uevent, "/sys/dev/char/%d:%d/device/uevent", DRM_MAJOR, render_node_minor);
}
