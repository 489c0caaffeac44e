# nvcc: which GPUs the kernels are compiled for, and how.
if(PYSOUP_CUDA_ARCH STREQUAL "AUTO")
  set(architectures 80-real 90)
  find_program(nvidia_smi nvidia-smi)
  if(nvidia_smi)
    execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE failed)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${found}")
    list(FILTER found EXCLUDE REGEX "^[1-7][.]")  # the kernels have instructions of 8.0
    if(found AND NOT failed)
      list(REMOVE_DUPLICATES found)
      string(REPLACE "." "" architectures "${found}")
    endif()
  endif()
elseif(PYSOUP_CUDA_ARCH STREQUAL "all")
  set(architectures 80-real 86-real 89-real 90-real 100-real 120)
else()
  set(architectures ${PYSOUP_CUDA_ARCH})
endif()
set(CMAKE_CUDA_ARCHITECTURES ${architectures})
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

add_library(device_cuda OBJECT ${cuda_sources})
set_target_properties(device_cuda PROPERTIES
  CUDA_ARCHITECTURES "${architectures}" CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
  CUDA_VISIBILITY_PRESET hidden)
set(errors cross-execution-space-call)
if(PYSOUP_WERROR)
  set(errors all-warnings,${errors})
endif()
# The same bits as on the CPU: nothing contracted, flushed or approximated.
target_compile_options(device_cuda PRIVATE
  --fmad=false -ftz=false -prec-div=true -Werror=${errors} -Xcompiler=-Wall)
list(JOIN architectures " " listed)
target_compile_definitions(device_cuda PRIVATE SOUP_CUDA_ARCHITECTURES="${listed}")
