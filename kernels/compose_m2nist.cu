// Composes M2NIST images: one to three MNIST digits on black, 64x84, in 28x28 boxes that do not overlap.
//
//   array           shape         type     place   draw   fast
//   step            (1)           int      in             in     the step's number, its bits read as unsigned
//   boxes           (N,3,3)       int      out     in            digit, top, left; digit -1: no box
//   digits          (M,28,28)     byte             in     in
//   digit_labels    (M)           byte             in     in     0 .. 9
//   batch           (N,1,64,84)   float            out    out    (pixel - 127) / 127
//   labels          (N,64,84)     int              out    out    the digit's label where there is ink (pixel > 0), else
//                                                                background
//   kernel                       grid                          block   global reads a thread          writes
//   compose_m2nist_place_naive   ceil(N/256)                   256     1                              9
//   compose_m2nist_draw_naive    ceil(N*64*84/256)             256     up to 11                       2
//   compose_m2nist               (N, 6), or (N, 1) if N > 128  224     4, and up to 1 for a pixel     a float4 and an
//                                                                                                     int4 for 4 pixels
//
// Where the digits go is a function of (seed, step, image) through a counter-based generator (common.cuh). So every
// device trains on the same images, and a resumed run goes on with the right ones:
//
//   philox(counter = (0, image, step, 0), key = seed)      how many digits (1, 2 or 3), and which three
//   philox(counter = (t, image, step, 0), key = seed)      try t = 1 .. 512: the three positions, one word each
//
// Each try places all boxes anew, so all layouts without overlap are equally likely. About 1 try in 48 succeeds for
// three digits. If all 512 fail (for 2 in 100,000 images of three digits), the boxes stand side by side, 3 * 28 = 84.
//
//   +----------------------+    To draw, a thread owns an output pixel and asks which box covers it. If a thread owned
//   |   +---+              |    a digit's pixel instead, the background would need a launch of its own.
//   |   | 7 |      +---+   |
//   |   +---+      | 4 |   |
//   |      +---+   +---+   |
//   |      | 1 |           |
//   +------+---+-----------+
//
// Why the naive form is slow. One thread makes an image's tries one after another, ten rounds of multiplications each,
// and all others wait for the slowest: among 16 images that one makes about 100 tries. And the boxes go through global
// memory to a second launch.
//
// What the fast form does about it. The 32 lanes of a warp make 32 tries at once, and the lowest lane that fits wins:
//
//   lane        0  1  2  3  4  5  6  7  8 ..        __ballot_sync gives every lane this row as 32 bits;
//   fits        .  .  .  .  .  x  .  .  x ..        __ffs finds the lowest, lane 5; __shfl_sync fetches its positions
//
// If none fits, the lanes make the next 32. Every warp does this for itself, although all warps of an image find the
// same: if one warp searched while the others waited at a barrier, it would take as long and need shared memory. Then
// a thread draws four neighbouring pixels of a row at a time (84 = 4 * 21) and stores them as one float4 and one int4.
// Six blocks share an image, so that the 16 images of a training step keep 96 multiprocessors busy. Above 128 images
// each has one block, and the search is repeated less often.
//
// tinyfcn/reference/compose_m2nist.py computes the same integers in NumPy. Read next: tinyfcn/networks/encoder.py.

constexpr int HEIGHT = 64;
constexpr int WIDTH = 84;
constexpr int SIDE = 28;
constexpr int TRIES = 512;
constexpr int ROWS = HEIGHT - SIDE + 1;  // where a box may begin
constexpr int COLUMNS = WIDTH - SIDE + 1;
constexpr int FOURS = WIDTH / 4;      // in a row of an image
constexpr int COMPOSE_THREADS = 224;  // 7 whole warps; a sixth of an image's 64 * 21 fours

extern "C" __global__ void compose_m2nist_place_naive(const int* __restrict__ step, int* __restrict__ boxes, int M,
                                                      int N, unsigned int seed) {
    int n = thread_number();  // 0 .. N - 1, and the last block's surplus
    if (n >= N) return;
    unsigned int now = step[0];

    Words choice = philox(0, n, now, 0, seed, 0);
    int count = 1 + choice.word[0] % 3;

    int top[3], left[3];
    bool placed = false;
    for (int attempt = 1; attempt <= TRIES && !placed; ++attempt) {
        Words words = philox(attempt, n, now, 0, seed, 0);
        for (int k = 0; k < 3; ++k) {
            int position = words.word[k] % (ROWS * COLUMNS);
            top[k] = position / COLUMNS;
            left[k] = position % COLUMNS;
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

extern "C" __global__ void compose_m2nist_draw_naive(const int* __restrict__ boxes,
                                                     const unsigned char* __restrict__ digits,
                                                     const unsigned char* __restrict__ digit_labels,
                                                     float* __restrict__ batch, int* __restrict__ labels, int N,
                                                     int background) {
    int element = thread_number();  // 0 .. N*64*84 - 1, and the last block's surplus
    if (element >= N * HEIGHT * WIDTH) return;
    int column = element % WIDTH;  // 0 .. WIDTH - 1
    int row = element / WIDTH % HEIGHT;  // 0 .. HEIGHT - 1
    const int* image_boxes = boxes + element / (WIDTH * HEIGHT) * 9;

    int pixel = 0;
    int label = background;
    for (int k = 0; k < 3; ++k) {
        int digit = image_boxes[k * 3];
        int h = row - image_boxes[k * 3 + 1];  // within the box: 0 .. 27
        int w = column - image_boxes[k * 3 + 2];
        if (digit < 0 || h < 0 || h >= SIDE || w < 0 || w >= SIDE) continue;
        pixel = digits[(digit * SIDE + h) * SIDE + w];
        if (pixel > 0) label = digit_labels[digit];
    }
    batch[element] = (pixel - 127) / 127.0f;
    labels[element] = label;
}

extern "C" __global__ void __launch_bounds__(COMPOSE_THREADS)
    compose_m2nist(const int* __restrict__ step, const unsigned char* __restrict__ digits,
                   const unsigned char* __restrict__ digit_labels, float* __restrict__ batch, int* __restrict__ labels,
                   int M, unsigned int seed, int background) {
    const int n = blockIdx.x;           // 0 .. N - 1
    const int lane = threadIdx.x % 32;  // 0 .. 31
    const unsigned int now = step[0];

    const Words choice = philox(0, n, now, 0, seed, 0);
    const int count = 1 + choice.word[0] % 3;
    int digit[3], name[3];  // `name`: the digit's label
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        digit[k] = choice.word[k + 1] % M;
        name[k] = digit_labels[digit[k]];  // loaded early, while the search for positions runs
    }

    int position[3];
    unsigned int fitting = 0;  // a bit for each lane whose try fits
    for (int first = 1; first <= TRIES && fitting == 0; first += 32) {
        const int attempt = first + lane;
        const Words words = philox(attempt, n, now, 0, seed, 0);
        bool fits = attempt <= TRIES;
#pragma unroll
        for (int a = 0; a < 3; ++a) {
            position[a] = words.word[a] % (ROWS * COLUMNS);
#pragma unroll
            for (int b = 0; b < a; ++b) {
                int rows_apart = abs(position[a] / COLUMNS - position[b] / COLUMNS);
                int columns_apart = abs(position[a] % COLUMNS - position[b] % COLUMNS);
                if (a < count && rows_apart < SIDE && columns_apart < SIDE) fits = false;
            }
        }
        fitting = __ballot_sync(0xffffffff, fits);
    }
    const int chosen = fitting ? __ffs(fitting) - 1 : (TRIES - 1) % 32;  // the lane of the try that counts: 0 .. 31
    int top[3], left[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        position[k] = __shfl_sync(0xffffffff, position[k], chosen);
        top[k] = k < count ? position[k] / COLUMNS : HEIGHT;  // no box: below the image
        left[k] = fitting ? position[k] % COLUMNS : k * SIDE;
    }

    for (int four = blockIdx.y * COMPOSE_THREADS + threadIdx.x; four < HEIGHT * FOURS;  // 0 .. 64*21 - 1
         four += gridDim.y * COMPOSE_THREADS) {
        const int row = four / FOURS;             // 0 .. HEIGHT - 1
        const int column = four % FOURS * 4;      // 0 .. WIDTH - 4, the first of four
        int pixel[4] = {0, 0, 0, 0};
        int ink[4] = {0, 0, 0, 0};  // the label of ink there
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            const int h = row - top[k];  // within the box: 0 .. 27
            if (h < 0 || h >= SIDE) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int w = column + i - left[k];
                if (w < 0 || w >= SIDE) continue;
                pixel[i] = digits[(digit[k] * SIDE + h) * SIDE + w];
                ink[i] = name[k];  // unused where the pixel is 0; a test here would wait for the pixel
            }
        }
        float value[4];
        int label[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            value[i] = (pixel[i] - 127) / 127.0f;
            label[i] = pixel[i] > 0 ? ink[i] : background;
        }
        const int at = n * HEIGHT * FOURS + four;  // counted in fours
        reinterpret_cast<float4*>(batch)[at] = make_float4(value[0], value[1], value[2], value[3]);
        reinterpret_cast<int4*>(labels)[at] = make_int4(label[0], label[1], label[2], label[3]);
    }
}
