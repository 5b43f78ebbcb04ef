#pragma once

// Median read bandwidth of device 0 over 8 GB, 1e9 bytes per second; 0 when it could not be measured.
double read_gb_per_s();
