#include "prelude.c"
/* A window over an image, whose taps outside the image are 0 or ignored. */
struct window {
    int h, w, c, oh, ow, kh, kw, sh, sw, dh, dw, pt, pl;
};

struct taps {
    int begin, end;
};

/* The taps inside an axis of `size`, if the first one is at `at`. */
KERNEL struct taps taps_inside(int at, int size, int taps, int dilation)
{
    int before = at < 0 ? (-at + dilation - 1) / dilation : 0;
    int until = at < size ? (size - at + dilation - 1) / dilation : 0;
    until = until < taps ? until : taps;
    return (struct taps){before < until ? before : until, until};
}
