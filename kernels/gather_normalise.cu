// Gathers a batch of pictures and brings their bytes into the network's range.
//
//   batch[n, 0, s] = (images[indices[n], s] - 127) / 127             s: a pixel; black -1, white 128/127
//
//   array     shape     type     in or out
//   images    (M,S)     byte     in         all pictures, on the device once
//   indices   (N)       int      in         which to take: 0 .. M - 1
//   batch     (N,1,S)   float    out
//
//   kernel              grid             block   global reads a thread   writes
//   gather_normalise    ceil(N*S/256)    256     2                       1
//
//   images  0 255      indices  1 1 0      batch  -1     0
//           0 127                                 -1     0
//                                                 -1  1.008
//
// A byte is read where a float would be four: the pictures stay small, and only a batch is ever widened.
//
// Read next: compose_m2nist.cu.

extern "C" __global__ void gather_normalise(const unsigned char* __restrict__ images, const int* __restrict__ indices,
                                            float* __restrict__ batch, int N, int S) {
    int element = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (element >= N * S) return;
    batch[element] = (images[indices[element / S] * S + element % S] - 127) / 127.0f;
}
