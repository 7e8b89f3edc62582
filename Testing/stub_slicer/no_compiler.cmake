# A toolchain that compiles nothing: the extension is Python, and a machine without a compiler can check it.
set(CMAKE_C_COMPILER ${CMAKE_COMMAND})
set(CMAKE_CXX_COMPILER ${CMAKE_COMMAND})
foreach(language C CXX)
  set(CMAKE_${language}_COMPILER_ID_RUN TRUE)
  set(CMAKE_${language}_COMPILER_FORCED TRUE)
endforeach()
