// Gathers a batch on the device: images and labels by index, bytes normalised to floats.
//
//   batch[n, 0, s] = (images[i, s] - 127) / 127                      s: a pixel; black -1, white 128/127
//   labels[n, l]   = all_labels[i, l]                                l: a pixel too, or the one label of an image
//
//   gather_normalise   i = indices[n]
//   gather_batch       i = order[step % R, n]
//
//   array        shape     type     in or out
//   images       (M,S)     byte     in         all images, copied to the device once
//   all_labels   (M,L)     byte     in         all labels; L is S or 1
//   indices      (N)       int      in         the images to take: 0 .. M - 1
//   order        (R,N)     int      in         the images to take in each of R steps
//   step         (1)       int      in         steps done; Adam counts them
//   batch        (N,1,S)   float    out
//   labels       (N,L)     int      out
//
//   kernel              grid             block   global reads a thread   writes
//   gather_normalise    ceil(N*S/256)    256     2                       1
//   gather_batch        ceil(N*S/256)    256     3, or 4                 1, or 2
//
//   images  0 255      indices  1 1 0      batch  -1     0
//           0 127                                 -1     0
//                                                 -1  1.008
//
// A byte takes a quarter of a float's memory traffic: images and labels stay bytes, and only a batch is widened.
//
// gather_batch's arguments do not change from step to step, because it reads the step's number where Adam leaves it. So
// a training step can be recorded once and replayed; the host refills `order` every R steps.
//
// Read next: compose_m2nist.cu.

extern "C" __global__ void gather_normalise(const unsigned char* __restrict__ images, const int* __restrict__ indices,
                                            float* __restrict__ batch, int N, int S) {
    int element = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (element >= N * S) return;
    batch[element] = (images[indices[element / S] * S + element % S] - 127) / 127.0f;
}

extern "C" __global__ void gather_batch(const unsigned char* __restrict__ images,
                                        const unsigned char* __restrict__ all_labels, const int* __restrict__ order,
                                        const int* __restrict__ step, float* __restrict__ batch,
                                        int* __restrict__ labels, int R, int N, int S, int L) {
    int element = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (element >= N * S) return;
    int n = element / S;      // 0 .. N - 1
    int pixel = element % S;  // 0 .. S - 1
    int image = order[step[0] % R * N + n];
    batch[element] = (images[image * S + pixel] - 127) / 127.0f;
    if (pixel < L) labels[n * L + pixel] = all_labels[image * L + pixel];
}
