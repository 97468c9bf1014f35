// One access of a warp to shared memory: lane k accesses the element index[k], or none where index[k] is negative.

template <typename Element>
__global__ void load(const int* index, Element* y) {
    extern __shared__ __align__(16) unsigned char memory[];
    int at = index[threadIdx.x];
    if (at >= 0) y[threadIdx.x] = reinterpret_cast<Element*>(memory)[at];
}

template <typename Element>
__global__ void store(const int* index, const Element* x, Element* y) {
    extern __shared__ __align__(16) unsigned char memory[];
    int at = index[threadIdx.x];
    Element value = x[threadIdx.x];
    if (at >= 0) reinterpret_cast<Element*>(memory)[at] = value;
    __syncwarp();
    y[threadIdx.x] = reinterpret_cast<Element*>(memory)[threadIdx.x];  // or the compiler would drop the store
}
