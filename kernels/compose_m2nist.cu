// Composes M2NIST pictures: one to three MNIST digits on black, 64x84, their 28x28 boxes nowhere overlapping.
//
//   array           shape         type     place   draw
//   boxes           (N,3,3)       int      out     in      digit, top, left; digit -1: no box
//   digits          (M,28,28)     byte             in
//   digit_labels    (M)           byte             in      0 .. 9
//   batch           (N,1,64,84)   float            out     (pixel - 127) / 127
//   labels          (N,64,84)     int              out     the digit's label where there is ink (pixel > 0), else background
//
//   kernel                  grid                   block   global reads a thread   writes
//   compose_m2nist_place    ceil(N/256)            256     0                       9
//   compose_m2nist_draw     ceil(N*64*84/256)      256     up to 11                2
//
// Where digits go is a function of (seed, step, picture) through a counter-based generator (common.cuh), so that every
// device trains on the same pictures, and a resumed run on those that come next:
//
//   philox(counter = (0, picture, step, 0), key = seed)      how many digits (1, 2 or 3), and which three
//   philox(counter = (t, picture, step, 0), key = seed)      try t = 1 .. 512: the three places, one word each
//
// Each try places all boxes anew, so any layout without overlap is as likely as any other. About 1 try in 48 serves for
// three digits; should all 512 fail (2 in 100,000 of them), the boxes stand side by side, 3 * 28 = 84.
//
//   +----------------------+    Drawing, one thread owns an output pixel and asks which box covers it. The other way
//   |   +---+              |    round, a thread for each digit's pixel, the background would want a launch of its own.
//   |   | 7 |      +---+   |
//   |   +---+      | 4 |   |
//   |      +---+   +---+   |
//   |      | 1 |           |
//   +------+---+-----------+
//
// The same integers in NumPy: tinyfcn/reference/compose_m2nist.py. Read next: tinyfcn/networks/encoder.py.

constexpr int HEIGHT = 64;
constexpr int WIDTH = 84;
constexpr int SIDE = 28;
constexpr int TRIES = 512;

extern "C" __global__ void compose_m2nist_place(int* __restrict__ boxes, int M, int N, unsigned int seed,
                                                unsigned int step) {
    int n = thread_number();  // 0 .. N - 1, and the last block's surplus
    if (n >= N) return;
    const int rows = HEIGHT - SIDE + 1;
    const int columns = WIDTH - SIDE + 1;

    Words choice = philox(0, n, step, 0, seed, 0);
    int count = 1 + choice.word[0] % 3;

    int top[3], left[3];
    bool placed = false;
    for (int attempt = 1; attempt <= TRIES && !placed; ++attempt) {
        Words place = philox(attempt, n, step, 0, seed, 0);
        for (int k = 0; k < 3; ++k) {
            int position = place.word[k] % (rows * columns);
            top[k] = position / columns;
            left[k] = position % columns;
        }
        placed = true;
        for (int a = 0; a < count; ++a)
            for (int b = 0; b < a; ++b)
                if (abs(top[a] - top[b]) < SIDE && abs(left[a] - left[b]) < SIDE) placed = false;
    }
    for (int k = 0; k < 3; ++k) {
        int* box = boxes + (n * 3 + k) * 3;
        box[0] = k < count ? (int)(choice.word[k + 1] % M) : -1;
        box[1] = top[k];
        box[2] = placed ? left[k] : k * SIDE;
    }
}

extern "C" __global__ void compose_m2nist_draw(const int* __restrict__ boxes, const unsigned char* __restrict__ digits,
                                               const unsigned char* __restrict__ digit_labels,
                                               float* __restrict__ batch, int* __restrict__ labels, int N, int background) {
    int element = thread_number();  // 0 .. N*64*84 - 1, and the last block's surplus
    if (element >= N * HEIGHT * WIDTH) return;
    int column = element % WIDTH;  // 0 .. WIDTH - 1
    int row = element / WIDTH % HEIGHT;  // 0 .. HEIGHT - 1
    const int* picture = boxes + element / (WIDTH * HEIGHT) * 9;

    int pixel = 0;
    int label = background;
    for (int k = 0; k < 3; ++k) {
        int digit = picture[k * 3];
        int h = row - picture[k * 3 + 1];  // within the box: 0 .. 27
        int w = column - picture[k * 3 + 2];
        if (digit < 0 || h < 0 || h >= SIDE || w < 0 || w >= SIDE) continue;
        pixel = digits[(digit * SIDE + h) * SIDE + w];
        if (pixel > 0) label = digit_labels[digit];
    }
    batch[element] = (pixel - 127) / 127.0f;
    labels[element] = label;
}
