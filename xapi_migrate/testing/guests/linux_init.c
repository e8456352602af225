/* The Linux guest's only program, PID 1.
 *
 *   gcc -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie -s -Wl,--build-id=none \
 *       -Wl,-z,noseparate-code -o linux_init linux_init.c
 *
 * At each tick: one more, written to a sector of every virtio disk (O_DIRECT and O_DSYNC), then printed as one
 * line on the serial console. On the kernel's command line: tick_ms, data (first sector of the boot disk's data area; on
 * other disks it is 1), span (sectors written in turn), memory (MiB), rate (MiB/s dirtied), writes (KiB/s written besides,
 * to the sectors behind). X: memory did not hold what was written to it. E: a disk refused a write. The power button
 * makes it print OFF and power off.
 */
typedef unsigned long u64;
typedef unsigned int u32;

static long call(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define SYS(n, a, b, c, d) call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
enum { READ, WRITE, OPEN, CLOSE, MMAP = 9, PWRITE = 18, NANOSLEEP = 35, MKDIR = 83, MOUNT = 165, REBOOT = 169,
       CLOCK = 228, FINIT_MODULE = 313 };
enum { O_RDWR = 2, O_NONBLOCK = 04000, O_DSYNC = 010000, O_DIRECT = 040000 };

static char line[4096];
static char sector[131072] __attribute__((aligned(4096)));

static long option(const char *name, long otherwise)
{
    for (char *at = line; *at; at++) {
        if (at != line && at[-1] != ' ')
            continue;
        const char *n = name;
        char *p = at;
        while (*n && *p == *n)
            n++, p++;
        if (*n || *p != '=')
            continue;
        long value = 0;
        for (p++; *p >= '0' && *p <= '9'; p++)
            value = value * 10 + *p - '0';
        return value;
    }
    return otherwise;
}

static void say(char before, u64 number)
{
    char text[32], *p = text + sizeof text;
    *--p = '\n';
    do
        *--p = '0' + number % 10;
    while (number /= 10);
    if (before)
        *--p = before;
    SYS(WRITE, 1, p, text + sizeof text - p, 0);
}

static u64 now(void)
{
    u64 t[2];
    SYS(CLOCK, 1, t, 0, 0);
    return t[0] * 1000000000 + t[1];
}

static void rest(long ns)
{
    long t[2] = { ns / 1000000000, ns % 1000000000 };
    SYS(NANOSLEEP, t, 0, 0, 0);
}

static int pressed(int button)
{
    struct { long seconds, micros; unsigned short type, code; int value; } event;
    while (button >= 0 && SYS(READ, button, &event, sizeof event, 0) == sizeof event)
        if (event.type == 1 && event.code == 116 && event.value == 1)
            return 1;
    return 0;
}

__attribute__((used)) static void run(void)
{
    static const char *modules[] = { "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev",
                                     "virtio_pci", "virtio_blk", "evdev", "button" };
    SYS(MKDIR, "/dev", 0755, 0, 0);
    SYS(MKDIR, "/proc", 0755, 0, 0);
    SYS(MOUNT, "dev", "/dev", "devtmpfs", 0);
    SYS(MOUNT, "proc", "/proc", "proc", 0);
    int tty = SYS(OPEN, "/dev/ttyS0", O_RDWR | 0400, 0, 0);
    int fd = SYS(OPEN, "/proc/cmdline", 0, 0, 0);
    SYS(READ, fd, line, sizeof line - 1, 0);
    SYS(CLOSE, fd, 0, 0, 0);
    call(33, tty, 1, 0, 0, 0, 0);
    for (unsigned i = 0; i < sizeof modules / sizeof *modules; i++) {
        char path[64] = "/m/", *p = path + 3;
        for (const char *m = modules[i]; *m;)
            *p++ = *m++;
        *p++ = '.', *p++ = 'k', *p++ = 'o', *p = 0;
        fd = SYS(OPEN, path, 0, 0, 0);
        if (fd < 0 || SYS(FINIT_MODULE, fd, "", 0, 0) < 0)
            say('M', i);
        SYS(CLOSE, fd, 0, 0, 0);
    }
    char vd[] = "/dev/vda", ev[] = "/dev/input/event0";
    int disks[4], count = 0;
    for (int wait = 0; wait < 500 && !count; wait++) {
        for (vd[7] = 'a'; vd[7] <= 'd'; vd[7]++) {
            fd = SYS(OPEN, vd, O_RDWR | O_DIRECT | O_DSYNC, 0, 0);
            if (fd < 0)
                break;
            disks[count++] = fd;
        }
        if (!count)
            rest(10000000);
    }
    int buttons[8]; /* one of the input devices is the power button */
    for (int i = 0; i < 8; i++) {
        ev[16] = '0' + i;
        buttons[i] = SYS(OPEN, ev, O_NONBLOCK, 0, 0);
    }
    u64 tick = option("tick_ms", 10) * 1000000, data = option("data", 1), span = option("span", 2000);
    u64 size = option("memory", 0) << 20, rate = option("rate", 0), writes = option("writes", 0) * 2;
    char *memory = size ? (char *)call(MMAP, 0, size, 3, 0x22, -1, 0) : 0;
    u64 place = 0, pass = 0, owed = 0, owed_sectors = 0, behind = 0, last = now();
    for (u64 counter = 1;; counter++) {
        u64 t = now();
        int off = 0;
        for (int i = 0; i < 8; i++)
            off |= pressed(buttons[i]);
        if (off) {
            SYS(WRITE, 1, "OFF\n", 4, 0);
            SYS(REBOOT, 0xfee1dead, 672274793, 0x4321fedc, 0);
        }
        /* memory: each page holds pass ^ its number; no more than two ticks' worth at once */
        owed += (t - last) / 1000 * rate * 256;
        if (owed > 2 * tick / 1000 * rate * 256 + 1000000)
            owed = 2 * tick / 1000 * rate * 256 + 1000000;
        for (; memory && owed >= 1000000; owed -= 1000000) {
            u64 *word = (u64 *)(memory + place);
            if (pass && *word != (pass ^ place))
                say('X', place);
            *word = (pass + 1) ^ place;
            place += 4096;
            if (place >= size)
                place = 0, pass++;
        }
        *(u32 *)sector = 0x4b434954; /* TICK */
        *(u64 *)(sector + 4) = counter;
        char bad = 0;
        for (int i = 0; i < count; i++)
            if (call(PWRITE, disks[i], (long)sector, 512, ((i ? 1 : data) + counter % span) * 512, 0, 0) != 512)
                bad = 'E';
        owed_sectors += (t - last) / 1000 * writes;
        if (owed_sectors > 256 * 1000000UL)
            owed_sectors = 256 * 1000000UL;
        if (owed_sectors >= 8 * 1000000UL && count) {
            u64 bytes = owed_sectors / 8000000 * 4096;
            if (call(PWRITE, disks[0], (long)sector, bytes, ((data + span + 7) / 8 * 8 + behind) * 512, 0, 0) != (long)bytes)
                bad = 'E';
            behind = (behind + bytes / 512) % 16384;
            owed_sectors -= bytes / 512 * 1000000;
        }
        last = t;
        say(bad, counter);
        u64 used = now() - t;
        if (used < tick)
            rest(tick - used);
    }
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n and $-16, %rsp\n call run\n");
